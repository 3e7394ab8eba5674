#!lua flags=allow-oom
-- Note that a worker lives; those that have been silent for long are forgotten. How many jobs of one tenant stand in a
-- lane at a time depends on the slots of all that live.
-- KEYS  workers, turns_each, retention
-- ARGV  NAME VERSION SLOTS, silence (ms) after which it is forgotten, how long (ms) it keeps results
redis.call('ZADD', KEYS.workers, NOW, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS.workers, '-inf', NOW - ARGV[2])
redis.call('PEXPIRE', KEYS.workers, ARGV[2])
local slots = 0
for _, worker in ipairs(redis.call('ZRANGE', KEYS.workers, 0, -1)) do slots = slots + string.match(worker, '%d+$') end
redis.call('SET', KEYS.turns_each, math.max(TURNS, math.floor(slots * TURNS_A_SLOT)), 'PX', ARGV[2])
redis.call('SET', KEYS.retention, ARGV[3])
return redis.status_reply('OK')
