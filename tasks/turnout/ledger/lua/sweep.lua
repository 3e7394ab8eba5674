#!lua flags=allow-oom
-- Take a job back whose lease is over: its worker has died, is cut off, or has too much to do to renew in time.
-- Each lapse counts as a death of its worker, until the next one finds that this worker has shown life since: then it
-- counts 1. Too many make the job poison.
-- KEYS  job, job_leases, story, workers, all_lanes
-- ARGV  id, what a death counts, what makes it poison
-- Returns queued | poison (to be settled as such) | none (not over, or not held)
local id = ARGV[1]
local version, state, owner, crashes, suspect = record('v', 'state', 'owner', 'crashes', 'suspect')
if version ~= VERSION or not has_lapsed(id, state) then return 'none' end

-- Of the last lapse: when it was, and the worker that may have died.
local since, worker = string.match(suspect or '', '^(%d+) (.*)$')
local lives = false
for _, seen in ipairs(since and redis.call('ZRANGE', KEYS.workers, '(' .. since, '+inf', 'BYSCORE') or {}) do
  lives = lives or begins(seen, worker .. ' ')
end
crashes = crashes + (lives and 1 or ARGV[2])
if crashes >= tonumber(ARGV[3]) then return 'poison' end

redis.call('HSET', KEYS.job, 'crashes', crashes, 'suspect', NOW .. ' ' .. owner)
redis.call('ZREM', KEYS.job_leases, id)
publish(id, true)
tell('"event":"taken_back"')
return 'queued'
