#!lua flags=allow-oom
-- Queue a parked job whose time has come, at its lane's front: it has waited long enough.
-- KEYS  job, pending, delayed, lane queue
-- ARGV  id
-- Returns 1, or 0 if it is not parked, or not due
local now = now_ms()
local due = redis.call('ZSCORE', KEYS[3], ARGV[1])
if not due or tonumber(due) > now then return 0 end
redis.call('ZREM', KEYS[3], ARGV[1])
local job = redis.call('HMGET', KEYS[1], 'state', 'message')
if job[1] ~= 'delayed' then return 0 end
redis.call('HSET', KEYS[1], 'state', 'queued', 'queued_ms', now)
redis.call('ZADD', KEYS[2], now, ARGV[1])
local message = string.gsub(job[2], '"front":0', '"front":1', 1)
redis.call('RPUSH', KEYS[4], message)
return 1
