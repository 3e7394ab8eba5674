#!lua flags=allow-oom
-- Queue a parked job at its lane's front: it has waited long enough.
-- KEYS  job, delayed, parked, story, all_lanes
-- ARGV  id, when (ms from now) the next of its group looks if this one wakes none; '': there is room, so wake it
--       whether its group is due or not
-- Returns 1, or 0 if it is not parked, or not due
local version, state, member = job_fields('v', 'state', 'spot')
if version ~= VERSION or state ~= 'delayed' then return 0 end
if ARGV[2] ~= '' then
  if tonumber(redis.call('ZSCORE', KEYS.delayed, group_of(member))) > NOW then return 0 end
  redis.call('ZADD', KEYS.delayed, NOW + ARGV[2], group_of(member))
end

unpark(member)
publish(ARGV[1], true)
add_event('"event":"woken"')
return 1
