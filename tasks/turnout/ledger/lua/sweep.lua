#!lua flags=allow-oom
-- Take a job back whose lease is over: its worker has died or is cut off.
-- KEYS  job, pending, leases, lane queue, story
-- ARGV  id, crashes that make it poison
-- Returns queued | poison (to be settled as such; nothing was changed) | none (not over, or not held)
local now = now_ms()
local ends = redis.call('ZSCORE', KEYS[3], ARGV[1])
if not ends or tonumber(ends) > now then return 'none' end
local job = redis.call('HMGET', KEYS[1], 'state', 'crashes', 'message')
if not (job[1] == 'leased' or job[1] == 'calling') then
  redis.call('ZREM', KEYS[3], ARGV[1])  -- an expired record, for one
  return 'none'
end
if job[2] + 1 >= tonumber(ARGV[2]) then return 'poison' end
redis.call('HINCRBY', KEYS[1], 'crashes', 1)
redis.call('HSET', KEYS[1], 'state', 'queued', 'queued_ms', now)
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('ZADD', KEYS[2], now, ARGV[1])
redis.call('RPUSH', KEYS[5], '{"at":' .. now .. ',"event":"taken_back"}')
local message = string.gsub(job[3], '"front":0', '"front":1', 1)
redis.call('RPUSH', KEYS[4], message)
return 'queued'
