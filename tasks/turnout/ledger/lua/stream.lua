#!lua
-- Add to the pieces of an answer, and tell who reads. Of a very long one the beginning is lost to those who come late.
-- KEYS  stream, job
-- ARGV  id, time to live (ms), then fields and values
redis.call('XADD', KEYS.stream, 'MAXLEN', '~', 20000, '*', unpack(ARGV, 3))
redis.call('PEXPIRE', KEYS.stream, ARGV[2])
tell_all(record('readers'), '+' .. ARGV[1])
