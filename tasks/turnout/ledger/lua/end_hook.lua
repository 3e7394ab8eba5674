#!lua flags=allow-oom
-- End the telling of a job.
-- KEYS  hooks, job, story
-- ARGV  id, event (JSON fields)
if redis.call('ZREM', KEYS[1], ARGV[1]) == 1 and redis.call('EXISTS', KEYS[2]) == 1 then
  redis.call('HDEL', KEYS[2], 'hook_tries')
  tell(KEYS[3], ARGV[2])
end
return 1
