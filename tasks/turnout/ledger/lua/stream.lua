#!lua
-- Add to the pieces of an answer, and notify its readers. A very long one loses its beginning for those who come late.
-- KEYS  stream, job
-- ARGV  id, time to live (ms), then fields and values
redis.call('XADD', KEYS.stream, 'MAXLEN', '~', 20000, '*', unpack(ARGV, 3))
redis.call('PEXPIRE', KEYS.stream, ARGV[2])
notify(job_fields('readers'), '+' .. ARGV[1])
