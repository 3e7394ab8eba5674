#!lua flags=allow-oom
-- Take a queued job for one worker: the token grows, and fences whoever held it before.
-- KEYS  job, pending, leases
-- ARGV  id, owner, time to live (ms), contract version
-- Returns {state} if it is not to be had, else
--         {'claimed', token, waited ms, fields and values of the record}
local state = redis.call('HGET', KEYS[1], 'state')
if not state then return {'none'} end
if redis.call('HGET', KEYS[1], 'v') ~= ARGV[4] then return {'unknown_version'} end
if state ~= 'queued' then return {state} end

local now = now_ms()
local token = redis.call('HINCRBY', KEYS[1], 'token', 1)
redis.call('HSET', KEYS[1], 'state', 'leased', 'owner', ARGV[2])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZADD', KEYS[3], now + ARGV[3], ARGV[1])
local waited = now - redis.call('HGET', KEYS[1], 'queued_ms')
return {'claimed', token, waited, redis.call('HMGET', KEYS[1], 'payload', 'accepted_ms', 'deadline_ms',
  'progress', 'tenant', 'batch', 'lane', 'embed', 'stream', 'webhook', 'trace', 'crashes', 'calls')}
