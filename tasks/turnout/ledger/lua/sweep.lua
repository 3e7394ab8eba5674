#!lua flags=allow-oom
-- Take back a job whose lease is over: its worker has died, is cut off, or is too busy to renew in time. Each lapse
-- counts as a death of its worker, unless the next lapse finds that this worker has shown life since: then it counts 1.
-- Too many points make the job poison.
-- KEYS  job, job_leases, story, workers, all_lanes
-- ARGV  id, points of a death, points from which the job is poison
-- Returns queued | poison (to be settled as such) | none (not over, or not held)
local id = ARGV[1]
local version, state, owner, points, last_lapse = job_fields('v', 'state', 'owner', 'crashes', 'suspect')
if version ~= VERSION or not has_lapsed(id, state) then return 'none' end

-- The last lapse: when it was, and the worker that may have died.
local since, worker = string.match(last_lapse or '', '^(%d+) (.*)$')
local lives = false
for _, seen in ipairs(since and redis.call('ZRANGE', KEYS.workers, '(' .. since, '+inf', 'BYSCORE') or {}) do
  lives = lives or starts_with(seen, worker .. ' ')
end
points = points + (lives and 1 or ARGV[2])
if points >= tonumber(ARGV[3]) then return 'poison' end

redis.call('HSET', KEYS.job, 'crashes', points, 'suspect', NOW .. ' ' .. owner)
redis.call('ZREM', KEYS.job_leases, id)
publish(id, true)
add_event('"event":"taken_back"')
return 'queued'
