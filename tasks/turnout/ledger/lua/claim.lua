#!lua
-- Take a queued job for one worker: the token grows, and fences whoever held it before. Not while Redis is out of
-- memory: no call would be admitted, and the lease would run out again and again, as with a job that kills its workers.
-- KEYS  job, job_leases, story, turns, awaiting_turn, turns_each, parked, all_lanes
-- ARGV  id, owner, time to live (ms), the number of this claim among the owner's, then the names of the keys that it has
-- Returns {state} if it is not to be had, {'unknown_key', key} if the worker couldn't read it, else
--         {'claimed', token, waited ms, id of the job whose turn is next ('': none), 1 if any job is parked,
--          values of CLAIMED}
local version, state, queued_ms, turn, seal, lane, token, owner, claim =
  record('v', 'state', 'queued_ms', 'turn', 'seal', 'lane', 'token', 'owner', 'claim')
if not state then return {'none'} end
if version ~= VERSION then return {'unknown_version'} end

local function claimed(next_in_turn)
  return {'claimed', tonumber(token), NOW - queued_ms, next_in_turn or '', redis.call('EXISTS', KEYS.parked),
    {record(CLAIMED())}}
end

if state == 'leased' and owner == ARGV[2] and claim == ARGV[4] then return claimed() end -- its reply was lost
if state ~= 'queued' then return {state} end
if seal then
  local known = false
  for i = 5, #ARGV do known = known or ARGV[i] == seal end
  if not known then return {'unknown_key', seal} end
end

token = token + 1
redis.call('ZADD', KEYS.job_leases, NOW + ARGV[3], ARGV[1])
redis.call('ZREM', (of_lane(lane)), ARGV[1])
redis.call('HSET', KEYS.job, 'state', 'leased', 'owner', ARGV[2], 'claim', ARGV[4], 'token', token)
redis.call('HDEL', KEYS.job, 'republished')
local after = nil
if turn then
  end_turn(turn)
  local whose = whose_turn(turn)
  if turns_left(whose) > 0 then after = next_turn(whose) end
end
tell('"event":"claimed","by":' .. cjson.encode(ARGV[2]))
return claimed(after)
