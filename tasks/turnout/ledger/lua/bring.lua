#!lua flags=allow-oom
-- Publish a job that waited in line and whose turn has come, on its lane's back, unless it isn't queued any more.
-- KEYS  job, all_lanes
-- ARGV  id
if record('state') == 'queued' then publish(ARGV[1]) end
