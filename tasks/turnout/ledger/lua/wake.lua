#!lua flags=allow-oom
-- Queue a parked job at its lane's front: it has waited long enough.
-- KEYS  job, delayed, parked, story, all_lanes
-- ARGV  id, when the next of its line looks (ms from now), should this one wake none; '': there is room, so wake it
--       whether its line is due or not
-- Returns 1, or 0 if it is not parked, or not due
local version, state, spot = record('v', 'state', 'spot')
if version ~= VERSION or state ~= 'delayed' then return 0 end
if ARGV[2] ~= '' then
  if tonumber(redis.call('ZSCORE', KEYS.delayed, line_of(spot))) > NOW then return 0 end
  redis.call('ZADD', KEYS.delayed, NOW + ARGV[2], line_of(spot))
end

unpark(spot)
publish(ARGV[1], true)
tell('"event":"woken"')
return 1
