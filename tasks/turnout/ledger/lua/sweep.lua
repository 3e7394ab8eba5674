#!lua flags=allow-oom
-- Take a job back whose lease is over: its worker has died or is cut off.
-- KEYS  job, pending, lane queue, leases, story
-- ARGV  id, crashes that make it poison
-- Returns queued | poison (to be settled as such; nothing was changed) | none (not over, or not held)
local job = redis.call('HMGET', KEYS[1], 'v', 'state', 'crashes')
if job[1] ~= VERSION or not is_held(job[2]) then return 'none' end
if tonumber(redis.call('ZSCORE', KEYS[4], ARGV[1])) > NOW then return 'none' end
if job[3] + 1 >= tonumber(ARGV[2]) then return 'poison' end

local crashes = redis.call('HINCRBY', KEYS[1], 'crashes', 1)
redis.call('ZREM', KEYS[4], ARGV[1])
publish(KEYS[1], ARGV[1], KEYS[2], KEYS[3], true)
tell(KEYS[5], '"event":"taken_back","crashes":' .. crashes)
return 'queued'
