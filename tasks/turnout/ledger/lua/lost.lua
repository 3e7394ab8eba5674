#!lua flags=no-writes,allow-oom
-- Queued jobs of a lane that have no message any more, oldest first: a message of theirs would stand before the one at
-- the front, or the lane is empty. A backlog, however long, costs nothing here. Some jobs have just been fetched by a
-- worker, and are claimed a moment later; so listed is what had none when the front was last looked at, either.
-- KEYS  all_lanes
-- ARGV  lane, the front's place then, at most so many
-- Returns {the front's place now, ids}
local pending, queue = of_lane(ARGV[1])
local front = front_place(pending, queue)
local before = math.min(front, ARGV[2])
return {front, redis.call('ZRANGEBYSCORE', pending, '-inf', '(' .. before, 'LIMIT', 0, ARGV[3])}
