#!lua flags=no-writes,allow-oom
-- The members of an index whose time has come, oldest first.
-- KEYS  a zset by time (ms)
-- ARGV  most members
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', NOW, 'LIMIT', 0, ARGV[1])
