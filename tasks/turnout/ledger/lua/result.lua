#!lua flags=no-writes,allow-oom
-- How a job has ended.
-- KEYS  job, result
-- Returns values of RESULT, the first of which is missing of a job that goes on
return result_of()
