#!lua
-- Add to the pieces of an answer. Of a very long one the beginning is lost to those who come late.
-- KEYS  stream
-- ARGV  time to live (ms), then fields and values
redis.call('XADD', KEYS[1], 'MAXLEN', '~', 20000, '*', unpack(ARGV, 2))
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 1
