#!lua flags=allow-oom
-- Publish a job that waited in line and whose turn has come, on its lane's back.
-- KEYS  job, pending, queue
-- ARGV  id
-- Returns 1, or 0 if it isn't queued any more
if redis.call('HGET', KEYS[1], 'state') ~= 'queued' then return 0 end
publish(KEYS[1], ARGV[1], KEYS[2], KEYS[3])
return 1
