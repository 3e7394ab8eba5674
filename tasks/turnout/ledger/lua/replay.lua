#!lua
-- Run a settled job again that did not succeed; its story goes on.
-- KEYS  job, pending, failed, counts, story, result, lane queue
-- ARGV  id, message
-- Returns 1, or 0 if it is gone, live or succeeded
local state = redis.call('HGET', KEYS[1], 'state')
if not (state == 'failed' or state == 'expired' or state == 'cancelled') then return 0 end
local now = now_ms()
redis.call('HSET', KEYS[1], 'state', 'queued', 'queued_ms', now, 'crashes', 0, 'deadline_ms', 0, 'progress', '',
  'message', ARGV[2])
redis.call('HDEL', KEYS[1], 'result', 'settled_ms', 'settled_token')
redis.call('HINCRBY', KEYS[1], 'token', 1)
redis.call('PERSIST', KEYS[1])
redis.call('PERSIST', KEYS[5])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('ZADD', KEYS[2], now, ARGV[1])
redis.call('HINCRBY', KEYS[4], state, -1)
redis.call('DEL', KEYS[6])
redis.call('RPUSH', KEYS[5], '{"at":' .. now .. ',"event":"replayed"}')
redis.call('LPUSH', KEYS[7], ARGV[2])
return 1
