#!lua flags=allow-oom
-- Note that a worker lives; those that have been silent for long are forgotten.
-- KEYS  workers
-- ARGV  NAME VERSION, silence (ms) after which it is forgotten
redis.call('ZADD', KEYS[1], NOW, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', NOW - ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return redis.status_reply('OK')
