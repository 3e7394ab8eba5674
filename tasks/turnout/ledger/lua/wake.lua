#!lua flags=allow-oom
-- Queue a parked job whose time has come, at its lane's front: it has waited long enough. But of many it waits for
-- its turn, so that they don't keep the lane from all others.
-- KEYS  job, pending, lane queue, delayed, story, turns, line
-- ARGV  id
-- Returns 1, or 0 if it is not parked, or not due
local job = redis.call('HMGET', KEYS[1], 'v', 'state')
if job[1] ~= VERSION or job[2] ~= 'delayed' then return 0 end
if tonumber(redis.call('ZSCORE', KEYS[4], ARGV[1])) > NOW then return 0 end

redis.call('ZREM', KEYS[4], ARGV[1])
if has_turn(KEYS[1], ARGV[1], KEYS[6], KEYS[7]) then
  publish(KEYS[1], ARGV[1], KEYS[2], KEYS[3], true)
else
  redis.call('HSET', KEYS[1], 'state', 'queued', 'queued_ms', NOW)
end
tell(KEYS[5], '"event":"woken"')
return 1
