#!lua flags=allow-oom
-- Give a held job back to its lane's front: after a failure, to be done elsewhere, or when a worker stops.
-- KEYS  job, pending, leases, lane queue, story
-- ARGV  id, token, progress (JSON; '': as it was), event (JSON fields), requeues to add (0 or 1)
-- Returns 1, or 0 if it is no longer this worker's
local job = redis.call('HMGET', KEYS[1], 'state', 'token', 'message')
if job[2] ~= ARGV[2] or not (job[1] == 'leased' or job[1] == 'calling') then return 0 end
local now = now_ms()
local requeues = redis.call('HINCRBY', KEYS[1], 'requeues', ARGV[5])
redis.call('HSET', KEYS[1], 'state', 'queued', 'queued_ms', now)
if ARGV[3] ~= '' then redis.call('HSET', KEYS[1], 'progress', ARGV[3]) end
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('ZADD', KEYS[2], now, ARGV[1])
redis.call('RPUSH', KEYS[5], '{"at":' .. now .. ',' .. ARGV[4] .. '}')
local message = string.gsub(job[3], '"retries":%d+', '"retries":' .. requeues, 1)
message = string.gsub(message, '"front":0', '"front":1', 1)
redis.call('RPUSH', KEYS[4], message)
return 1
