#!lua flags=allow-oom
-- Park a held job: nothing has room for it now. No attempt is spent.
-- KEYS  job, leases, delayed, parked, story
-- ARGV  id, token, line, for how long (ms) the line waits at most, progress (JSON), event (JSON fields)
-- Returns 1, or 0 if it is no longer this worker's
local state, token = unpack(redis.call('HMGET', KEYS.job, 'state', 'token'))
if not is_held(state) or token ~= ARGV[2] then return 0 end

redis.call('HSET', KEYS.job, 'progress', ARGV[5])
redis.call('ZREM', KEYS.leases, ARGV[1])
park(ARGV[1], ARGV[3], ARGV[4])
tell(ARGV[6])
return 1
