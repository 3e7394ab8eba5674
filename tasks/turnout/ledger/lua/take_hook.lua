#!lua flags=allow-oom
-- Take the telling of a settled job, which is due again after a wait unless `end_hook` comes first. So no other worker
-- tells it meanwhile, and one that dies or is not heard leaves nothing to be done.
-- KEYS  hooks, job, result
-- ARGV  hook, id, then the wait (ms) after each telling, the last one for all that follow
-- Returns the hook as it stands now, tellings including this one, and values of RESULT, none if it is gone; nothing: it
-- is not to be told now
local hook, id = ARGV[1], ARGV[2]
if redis.call('ZREM', KEYS.hooks, hook) == 0 then return nil end
local state, current = record('state', 'hook')
-- Replayed: its next end is told.
if state and (current ~= hook or is_live(state)) then return nil end
local result = result_of()
local tries = result[1] and redis.call('HINCRBY', KEYS.job, 'hook_tries', 1) or 1
hook = string.match(hook, '^%S+') .. ' ' .. NOW + ARGV[2 + math.min(tries, #ARGV - 2)] .. ' ' .. id
if state then redis.call('HSET', KEYS.job, 'hook', hook) end
redis.call('ZADD', KEYS.hooks, 0, hook)
return {hook, tries, unpack(result)}
