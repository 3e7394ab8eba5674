#!lua flags=allow-oom
-- Drop what a job has spent of its own ceiling, once it has ended: should it be run again, it has the whole.
-- KEYS  job, money
-- ARGV  id
-- Returns 1, or 0 if the job is live
local state = redis.call('HGET', KEYS.job, 'state')
if state and (is_waiting(state) or is_held(state)) then return 0 end
local account = 'job:' .. ARGV[1]
redis.call('HDEL', KEYS.money, account .. '|spent', account .. '|reserved', account .. '|unsure',
  account .. '|duplicate')
return 1
