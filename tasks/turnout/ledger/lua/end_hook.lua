#!lua flags=allow-oom
-- End the telling of a job. If the job was replayed meanwhile and has ended anew, that end is still to be told.
-- KEYS  hooks, job, story
-- ARGV  hook, event (JSON fields)
local current = record('hook')
if redis.call('ZREM', KEYS.hooks, ARGV[1]) == 1 and current then
  if current == ARGV[1] then redis.call('HDEL', KEYS.job, 'hook', 'hook_tries') end
  tell(ARGV[2])
end
