#!lua flags=allow-oom
-- Publish a job that has got its turn, on its lane's back, unless it isn't queued any more.
-- KEYS  job, all_lanes
-- ARGV  id
if job_fields('state') == 'queued' then publish(ARGV[1]) end
