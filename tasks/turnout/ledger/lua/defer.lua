#!lua flags=allow-oom
-- Park a held job: nothing has room for it now. No attempt is spent.
-- KEYS  job, leases, delayed, story
-- ARGV  id, token, for how long (ms), progress (JSON), event (JSON fields)
-- Returns 1, or 0 if it is no longer this worker's
local job = redis.call('HMGET', KEYS[1], 'state', 'token')
if not is_held(job[1]) or job[2] ~= ARGV[2] then return 0 end

redis.call('HSET', KEYS[1], 'state', 'delayed', 'progress', ARGV[4])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZADD', KEYS[3], NOW + ARGV[3], ARGV[1])
tell(KEYS[4], ARGV[5])
return 1
