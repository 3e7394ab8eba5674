#!lua flags=no-writes,allow-oom
-- Queued jobs of a lane that have no message any more, oldest first: a message of theirs would stand before the one at
-- the front, or the lane is empty. A backlog, however long, costs nothing here. Some jobs have just been fetched by a
-- worker, and are claimed a moment later; so listed is what had none when the front was last looked at, either.
-- KEYS  pending, queue
-- ARGV  the front's place then, at most so many
-- Returns {the front's place now, ids}
local front = front_place()
local before = math.min(front, ARGV[1])
return {front, redis.call('ZRANGEBYSCORE', KEYS.pending, '-inf', '(' .. before, 'LIMIT', 0, ARGV[2])}
