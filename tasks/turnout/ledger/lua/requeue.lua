#!lua flags=allow-oom
-- Give a held job back to its lane's front: after a failure, to be done elsewhere, or when a worker stops.
-- KEYS  job, leases, story, all_lanes
-- ARGV  id, token, progress (JSON), event (JSON fields), requeues to add (0 or 1)
-- Returns 1, or 0 if it is no longer this worker's
local state, token = unpack(redis.call('HMGET', KEYS.job, 'state', 'token'))
if not is_held(state) or token ~= ARGV[2] then return 0 end

redis.call('HINCRBY', KEYS.job, 'requeues', ARGV[5])
redis.call('HSET', KEYS.job, 'progress', ARGV[3])
redis.call('ZREM', KEYS.leases, ARGV[1])
publish(ARGV[1], true)
tell(ARGV[4])
return 1
