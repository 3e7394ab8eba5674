#!lua flags=allow-oom
-- Publish the message of a queued job again, which was lost with the worker that had fetched it.
-- Only when no message of it can be waiting: its lane is empty, or the oldest message there is of a job that
-- was published later. So a backlog never doubles. (Messages put at the front tell nothing of the rest.) What is
-- published twice all the same is harmless, for only one claim succeeds.
-- KEYS  job, pending, lane queue
-- ARGV  id, age from which on a message counts as lost (ms), doubled with each time
-- Returns 1, or 0 if there was no reason to
local now = now_ms()
local job = redis.call('HMGET', KEYS[1], 'state', 'message', 'republished')
if job[1] ~= 'queued' then
  redis.call('ZREM', KEYS[2], ARGV[1])
  return 0
end
local published = redis.call('ZSCORE', KEYS[2], ARGV[1])
local times = tonumber(job[3] or 0)
if not published or now - published < ARGV[2] * 2 ^ math.min(times, 10) then return 0 end
local oldest = redis.call('LINDEX', KEYS[3], -1)
if oldest then
  local other = string.match(oldest, '"front":0,"id":"([^"]+)"')
  local its_time = other and redis.call('ZSCORE', KEYS[2], other)
  if not its_time or tonumber(its_time) <= tonumber(published) then return 0 end
end
redis.call('HINCRBY', KEYS[1], 'republished', 1)
redis.call('ZADD', KEYS[2], now, ARGV[1])
redis.call('LPUSH', KEYS[3], job[2])
return 1
