#!lua flags=allow-oom
-- Drop what an ended job has spent of its own ceiling: if it is run again, it has all of it.
-- KEYS  job, money
-- ARGV  id
if is_live(job_fields('state')) then return end
local account = 'job:' .. ARGV[1]
redis.call('HDEL', KEYS.money, account .. '|spent', account .. '|reserved', account .. '|unsure',
  account .. '|duplicate')
