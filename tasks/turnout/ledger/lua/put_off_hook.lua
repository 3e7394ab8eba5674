#!lua flags=allow-oom
-- Tell a job again later, for it was told in vain.
-- KEYS  hooks, job
-- ARGV  id, wait (ms)
redis.call('ZADD', KEYS.hooks, 'XX', NOW + ARGV[2], ARGV[1])
if redis.call('EXISTS', KEYS.job) == 1 then redis.call('HINCRBY', KEYS.job, 'hook_tries', 1) end
return 1
