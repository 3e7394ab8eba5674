#!lua
-- Publish a queued job again that has had no message for some time. Should it have one all the same, then two
-- messages compete, and one of them finds the job claimed. Not while Redis is out of memory, when none is claimed.
-- KEYS  job, pending, queue, story
-- ARGV  id, for how long (ms) it must have been without; after that, each time twice as long passes
-- Returns 1, or 0 if it was not published
local version, state, missed_ms = unpack(redis.call('HMGET', KEYS.job, 'v', 'state', 'missed_ms'))
if version ~= VERSION or state ~= 'queued' then return 0 end
if not missed_ms then
  redis.call('HSET', KEYS.job, 'missed_ms', NOW)
  return 0
end
if NOW - missed_ms < tonumber(ARGV[2]) then return 0 end

local times = redis.call('HINCRBY', KEYS.job, 'republished', 1)
redis.call('HDEL', KEYS.job, 'missed_ms')
publish(ARGV[1])
-- Placed in the future, it is not looked for until then: what no worker claims must not be published for ever.
redis.call('ZADD', KEYS.pending, NOW + ARGV[2] * (2 ^ math.min(times - 1, 10) - 1), ARGV[1])
tell('"event":"republished"')
return 1
