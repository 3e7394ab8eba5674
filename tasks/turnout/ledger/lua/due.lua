#!lua flags=allow-oom
-- The members of an index whose time has come, oldest first.
-- KEYS  a zset by time (ms)
-- ARGV  at most so many, how long ago (ms) their time must have been
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now_ms() - ARGV[2], 'LIMIT', 0, ARGV[1])
