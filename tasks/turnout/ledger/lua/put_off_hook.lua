#!lua flags=allow-oom
-- Tell a job again later.
-- KEYS  hooks
-- ARGV  id, wait (ms)
redis.call('ZADD', KEYS.hooks, 'XX', NOW + ARGV[2], ARGV[1])
return 1
