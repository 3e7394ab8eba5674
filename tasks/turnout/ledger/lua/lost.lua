#!lua flags=no-writes,allow-oom
-- Queued jobs of a lane that seem to have no message any more, oldest first: a message of theirs would stand
-- before the one at the front, or the lane is empty. A backlog, however long, costs nothing here. Most of these
-- jobs have just been fetched by a worker, and are claimed a moment later; `republish` tells them apart.
-- KEYS  pending, queue
-- ARGV  at most so many
return redis.call('ZRANGEBYSCORE', KEYS.pending, '-inf', '(' .. front_place(), 'LIMIT', 0, ARGV[1])
