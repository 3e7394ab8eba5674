#!lua flags=allow-oom
-- Publish a job that waited in line and whose turn has come, on its lane's back.
-- KEYS  job, all_lanes
-- ARGV  id
-- Returns 1, or 0 if it isn't queued any more
if redis.call('HGET', KEYS.job, 'state') ~= 'queued' then return 0 end
publish(ARGV[1])
return 1
