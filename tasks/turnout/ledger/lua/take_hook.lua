#!lua flags=allow-oom
-- Take the telling of a settled job for a while, so that no other worker tells it meanwhile.
-- KEYS  hooks, job
-- ARGV  id, for how long (ms)
-- Returns webhook, tries, and values of RESULT; or nothing: it isn't due, or the job is gone or live again
local due = redis.call('ZSCORE', KEYS.hooks, ARGV[1])
if not due or tonumber(due) > NOW then return nil end
local told = redis.call('HMGET', KEYS.job, 'webhook', 'hook_tries', unpack(RESULT))
local webhook, _, result = unpack(told)
if not webhook or not result then
  redis.call('ZREM', KEYS.hooks, ARGV[1])
  return nil
end
redis.call('ZADD', KEYS.hooks, NOW + ARGV[2], ARGV[1])
return told
