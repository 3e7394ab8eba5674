#!lua flags=allow-oom
-- Drop what a job has spent of its own ceiling, once it has ended: should it be run again, it has the whole.
-- KEYS  job, money
-- ARGV  id
if is_live(record('state')) then return end
local account = 'job:' .. ARGV[1]
redis.call('HDEL', KEYS.money, account .. '|spent', account .. '|reserved', account .. '|unsure',
  account .. '|duplicate')
