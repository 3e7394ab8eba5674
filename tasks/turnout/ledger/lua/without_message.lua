#!lua flags=no-writes,allow-oom
-- Queued jobs of a lane that have no message any more, oldest first: it would stand before the one at the front, or the
-- lane is empty. A backlog, however long, costs nothing here. Some jobs have just been fetched by a worker, which
-- claims them a moment later; so only those are listed that had no message when the front was last looked at, either.
-- KEYS  all_lanes
-- ARGV  lane, the front's position then, most ids
-- Returns {the front's position now, ids}
local pending, queue = lane_keys(ARGV[1])
local front = front_position(pending, queue)
local before = math.min(front, ARGV[2])
return {front, redis.call('ZRANGEBYSCORE', pending, '-inf', '(' .. before, 'LIMIT', 0, ARGV[3])}
