#!lua flags=allow-oom
-- End the webhook delivery of a job. If the job was replayed and has ended again meanwhile, that end is still due.
-- KEYS  webhooks, job, story
-- ARGV  delivery, event (JSON fields)
local current = job_fields('hook')
if redis.call('ZREM', KEYS.webhooks, ARGV[1]) == 1 and current then
  if current == ARGV[1] then redis.call('HDEL', KEYS.job, 'hook', 'hook_tries') end
  add_event(ARGV[2])
end
