#!lua flags=allow-oom
-- Park a held job: nothing has room for it now. No attempt is spent.
-- KEYS  job, job_leases, delayed, parked, story
-- ARGV  id, token, wait group, how long (ms) the group waits at most, progress (JSON), event (JSON fields)
-- Returns 1, or 0 if it is no longer this worker's
if not release(ARGV[1], ARGV[2], ARGV[5]) then return 0 end
park(ARGV[1], ARGV[3], ARGV[4])
add_event(ARGV[6])
return 1
