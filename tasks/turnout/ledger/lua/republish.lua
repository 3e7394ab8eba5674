#!lua
-- Publish a queued job without a message again. If it has one after all, two messages compete, and one of them finds
-- the job claimed. Not while Redis is out of memory, when nothing is claimed.
-- KEYS  job, story, all_lanes
-- ARGV  id, the position before which it must still stand, how long (ms) it is left alone from the second time on
-- Returns 1, or 0 if it was not published
local version, lane = job_fields('v', 'lane')
if version ~= VERSION then return 0 end
local pending = lane_keys(lane)
local position = redis.call('ZSCORE', pending, ARGV[1])
if not position or tonumber(position) >= tonumber(ARGV[2]) then return 0 end

local times = redis.call('HINCRBY', KEYS.job, 'republished', 1)
publish(ARGV[1])
-- A position in the future, further each time, hides it until then: a job that no worker claims must not be published
-- for ever.
redis.call('ZADD', pending, NOW + ARGV[3] * (2 ^ math.min(times - 1, 10) - 1), ARGV[1])
add_event('"event":"republished"')
return 1
