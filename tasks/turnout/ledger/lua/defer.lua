#!lua flags=allow-oom
-- Park a held job: nothing has room for it now. No attempt is spent.
-- KEYS  job, leases, delayed, story
-- ARGV  id, token, for how long (ms), progress (JSON), event (JSON fields)
-- Returns 1, or 0 if it is no longer this worker's
local job = redis.call('HMGET', KEYS[1], 'state', 'token')
if job[2] ~= ARGV[2] or not (job[1] == 'leased' or job[1] == 'calling') then return 0 end
local now = now_ms()
redis.call('HSET', KEYS[1], 'state', 'delayed', 'progress', ARGV[4])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZADD', KEYS[3], now + ARGV[3], ARGV[1])
redis.call('RPUSH', KEYS[4], '{"at":' .. now .. ',' .. ARGV[5] .. '}')
redis.call('LTRIM', KEYS[4], -200, -1)
return 1
