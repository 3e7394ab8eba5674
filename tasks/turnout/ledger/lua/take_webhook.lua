#!lua flags=allow-oom
-- Take the webhook delivery of a settled job. It is due again after a wait unless `end_webhook` comes first: so no
-- other worker takes it meanwhile, and if this one dies or the delivery fails, nothing needs to be done.
-- KEYS  webhooks, job, result
-- ARGV  delivery, id, then the wait (ms) after each try, the last one for all further tries
-- Returns the delivery as it is due again, the number of tries including this one, and values of RESULT, none if the
-- job is gone; nothing if it isn't due any more
local delivery, id = ARGV[1], ARGV[2]
if redis.call('ZREM', KEYS.webhooks, delivery) == 0 then return nil end
local state, current = job_fields('state', 'hook')
-- Replayed: its next end will be delivered.
if state and (current ~= delivery or is_live(state)) then return nil end
local result = result_values()
local tries = result[1] and redis.call('HINCRBY', KEYS.job, 'hook_tries', 1) or 1
delivery = string.match(delivery, '^%S+') .. ' ' .. NOW + ARGV[2 + math.min(tries, #ARGV - 2)] .. ' ' .. id
if state then redis.call('HSET', KEYS.job, 'hook', delivery) end
redis.call('ZADD', KEYS.webhooks, 0, delivery)
return {delivery, tries, unpack(result)}
