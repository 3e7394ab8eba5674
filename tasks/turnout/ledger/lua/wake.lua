#!lua flags=allow-oom
-- Queue a parked job whose time has come, at its lane's front: it has waited long enough.
-- KEYS  job, pending, lane queue, delayed, story
-- ARGV  id
-- Returns 1, or 0 if it is not parked, or not due
local job = redis.call('HMGET', KEYS[1], 'v', 'state')
if job[1] ~= VERSION or job[2] ~= 'delayed' then return 0 end
if tonumber(redis.call('ZSCORE', KEYS[4], ARGV[1])) > NOW then return 0 end

redis.call('ZREM', KEYS[4], ARGV[1])
publish(KEYS[1], ARGV[1], KEYS[2], KEYS[3], true)
tell(KEYS[5], '"event":"woken"')
return 1
