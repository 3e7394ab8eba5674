#!lua flags=allow-oom
-- Read how a job has ended, for a worker that has a message of it. If Celery hasn't been told, this worker must do it.
-- KEYS  job, result
-- Returns 1 if the worker must tell Celery, else 0, and values of RESULT, as in `result`
local untold = job_fields('unheard') == '1'
if untold then redis.call('HSET', KEYS.job, 'unheard', 0) end
return {untold and 1 or 0, unpack(result_values())}
