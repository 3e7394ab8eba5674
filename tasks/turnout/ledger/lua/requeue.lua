#!lua flags=allow-oom
-- Give a held job back to its lane's front: after a failure, to be done elsewhere, or when a worker stops.
-- KEYS  job, job_leases, story, all_lanes
-- ARGV  id, token, progress (JSON), event (JSON fields), failovers to add (0 or 1)
-- Returns 1, or 0 if it is no longer this worker's
if not release(ARGV[1], ARGV[2], ARGV[3]) then return 0 end
redis.call('HINCRBY', KEYS.job, 'requeues', ARGV[5])
publish(ARGV[1], true)
add_event(ARGV[4])
return 1
