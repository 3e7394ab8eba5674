#!lua flags=allow-oom
-- End the telling of a job.
-- KEYS  hooks, job, story
-- ARGV  id, event (JSON fields)
if redis.call('ZREM', KEYS.hooks, ARGV[1]) == 1 and redis.call('EXISTS', KEYS.job) == 1 then
  redis.call('HDEL', KEYS.job, 'hook_tries')
  tell(ARGV[2])
end
return 1
