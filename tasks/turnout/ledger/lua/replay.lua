#!lua
-- Run a settled job again that did not succeed: from the start, without its old deadline. Its story goes on, and
-- keeps how the run before ended.
-- KEYS  job, pending, queue, failed, counts, story, result, stream, batch
-- ARGV  id
-- Returns 1, or 0 if it is gone, live or succeeded
local version, state, result = unpack(redis.call('HMGET', KEYS[1], 'v', 'state', 'result'))
if version ~= VERSION or not (state == 'failed' or state == 'expired' or state == 'cancelled') then return 0 end

redis.call('HSET', KEYS[1], 'crashes', 0, 'requeues', 0, 'deadline_ms', 0, 'progress', '')
redis.call('HDEL', KEYS[1], 'result', 'settled_ms', 'settled_token', 'lapses')
redis.call('PERSIST', KEYS[1])
redis.call('PERSIST', KEYS[6])
redis.call('ZREM', KEYS[4], ARGV[1])
redis.call('HINCRBY', KEYS[5], state, -1)
if redis.call('EXISTS', KEYS[9]) == 1 then redis.call('HINCRBY', KEYS[9], state, -1) end
redis.call('DEL', KEYS[7], KEYS[8])
publish(KEYS[1], ARGV[1], KEYS[2], KEYS[3])
tell(KEYS[6], '"event":"replayed","previous":' .. result)
return 1
