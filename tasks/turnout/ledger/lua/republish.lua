#!lua
-- Publish a queued job again that has no message. Should it have one all the same, then two messages compete, and one of
-- them finds the job claimed. Not while Redis is out of memory, when none is claimed.
-- KEYS  job, story, all_lanes
-- ARGV  id, the place before which it must still stand, for how long (ms) it is left alone from the second time on
-- Returns 1, or 0 if it was not published
local version, lane = record('v', 'lane')
if version ~= VERSION then return 0 end
local pending = of_lane(lane)
local place = redis.call('ZSCORE', pending, ARGV[1])
if not place or tonumber(place) >= tonumber(ARGV[2]) then return 0 end

local times = redis.call('HINCRBY', KEYS.job, 'republished', 1)
publish(ARGV[1])
-- Placed in the future, ever further, it is not looked for until then: what no worker claims must not be published for ever.
redis.call('ZADD', pending, NOW + ARGV[3] * (2 ^ math.min(times - 1, 10) - 1), ARGV[1])
tell('"event":"republished"')
return 1
