#!lua flags=no-writes,allow-oom
-- How a job has ended.
-- KEYS  job, result
-- Returns values of RESULT, without the first for a job that goes on
return result_values()
