#!lua flags=no-writes,allow-oom
-- Queued jobs of a lane that seem to have no message any more, oldest first: a message of theirs would stand
-- before the one at the front, or the lane is empty. A backlog, however long, costs nothing here. Most of these
-- jobs have just been fetched by a worker, and are claimed a moment later; `republish` tells them apart.
-- KEYS  pending, queue
-- ARGV  at most so many
local place = front_place()
if not place then
  if redis.call('LLEN', KEYS.queue) > 0 then return {} end  -- a plain Celery message, which tells nothing
  place = NOW
end
return redis.call('ZRANGEBYSCORE', KEYS.pending, '-inf', '(' .. place, 'LIMIT', 0, ARGV[1])
