#!lua flags=allow-oom
-- Take the telling of a settled job, which is due again after a wait unless `end_hook` comes first. So no other worker
-- tells it meanwhile, and one that dies or is not heard leaves nothing to be done.
-- KEYS  hooks, job, result
-- ARGV  id, then the wait (ms) after each telling, the last one for all that follow
-- Returns webhook, tellings including this one, and values of RESULT, none if it is gone; nothing: it is not to be told
-- now
local due = redis.call('ZSCORE', KEYS.hooks, ARGV[1])
if not due or tonumber(due) > NOW then return nil end
local webhook, state = unpack(redis.call('HMGET', KEYS.job, 'webhook', 'state'))
if is_waiting(state) or is_held(state) then -- replayed: its next end is told
  redis.call('ZREM', KEYS.hooks, ARGV[1])
  return nil
end
local result = result_of()
local tries = result[1] and redis.call('HINCRBY', KEYS.job, 'hook_tries', 1) or 1
redis.call('ZADD', KEYS.hooks, NOW + ARGV[1 + math.min(tries, #ARGV - 1)], ARGV[1])
return {webhook or '?', tries, unpack(result)}
