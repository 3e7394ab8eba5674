#!lua flags=allow-oom
-- Read how a job has ended, for a worker that has a message of it, and leave to that worker to tell Celery, if nobody has.
-- KEYS  job, result
-- Returns 1 if it is to tell, else 0, and values of RESULT, as in `result`
local unheard = record('unheard') == '1'
if unheard then redis.call('HSET', KEYS.job, 'unheard', 0) end
return {unheard and 1 or 0, unpack(result_of())}
