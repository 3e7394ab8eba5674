#!lua
-- Take a queued job for one worker: the token grows, and fences all earlier ones. Not while Redis is out of memory: no
-- call would be admitted, and the lease would lapse again and again, as if the job killed its workers.
-- KEYS  job, job_leases, story, turns, awaiting_turn, turns_each, parked, all_lanes
-- ARGV  id, owner, time to live (ms), the number of this claim among the owner's, then the names of the owner's keys
-- Returns {state} if it can't be had, {'unknown_key', key} if the worker couldn't read it, else
--         {'claimed', token, waited ms, id of the job that got the turn ('': none), 1 if any job is parked,
--          values of CLAIMED}
local version, state, queued_ms, turn, seal, lane, token, owner, claim =
  job_fields('v', 'state', 'queued_ms', 'turn', 'seal', 'lane', 'token', 'owner', 'claim')
if not state then return {'none'} end
if version ~= VERSION then return {'unknown_version'} end

local function claimed(next_in_turn)
  return {'claimed', tonumber(token), NOW - queued_ms, next_in_turn or '', redis.call('EXISTS', KEYS.parked),
    {job_fields(CLAIMED())}}
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
redis.call('ZREM', (lane_keys(lane)), ARGV[1])
redis.call('HSET', KEYS.job, 'state', 'leased', 'owner', ARGV[2], 'claim', ARGV[4], 'token', token)
redis.call('HDEL', KEYS.job, 'republished')
local next_in_turn = nil
if turn then
  end_turn(turn)
  local turn_owner = lane_and_tenant(turn)
  if free_turns(turn_owner) > 0 then next_in_turn = give_next_turn(turn_owner) end
end
add_event('"event":"claimed","by":' .. cjson.encode(ARGV[2]))
return claimed(next_in_turn)
