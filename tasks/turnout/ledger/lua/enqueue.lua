#!lua
-- Accept a job and publish its message, both or neither.
-- KEYS  job, deadlines, counts, story, intake, turns, awaiting_turn, turns_each, batch, all_lanes
-- ARGV  id, fingerprint, deadline (ms, 0: none), deadline from now (ms, 0: none), 1 to publish the message,
--       1 if it is of a detached batch, then fields and values of the record
-- Returns {outcome, state}: queued | duplicate | conflict | cancelled | full | expired
local id, fingerprint = ARGV[1], ARGV[2]

local known, state = job_fields('fingerprint', 'state')
if known then return {known == fingerprint and 'duplicate' or 'conflict', state} end
-- A deleted batch was cancelled before.
if ARGV[6] == '1' and (redis.call('HGET', KEYS.batch, 'state') or 'cancelled') == 'cancelled' then
  return {'cancelled', ''}
end
if redis.call('EXISTS', KEYS.intake) == 1 then return {'full', ''} end

local deadline, within = tonumber(ARGV[3]), tonumber(ARGV[4])
if within > 0 and (deadline == 0 or NOW + within < deadline) then deadline = NOW + within end
if deadline > 0 and deadline <= NOW then return {'expired', ''} end

redis.call('HSET', KEYS.job, 'state', 'queued', 'fingerprint', fingerprint, 'accepted_ms', NOW, 'queued_ms', NOW,
  'deadline_ms', deadline, 'token', 0, 'crashes', 0, 'requeues', 0, unpack(ARGV, 7))
if ARGV[5] ~= '1' then -- it has a message
  redis.call('ZADD', (lane_keys(job_fields('lane'))), NOW, id)
elseif take_or_await_turn(id) then
  publish(id)
end
if deadline > 0 then redis.call('ZADD', KEYS.deadlines, deadline, id) end
redis.call('HINCRBY', KEYS.counts, 'accepted', 1)
add_event('"event":"queued"')
return {'queued', 'queued'}
