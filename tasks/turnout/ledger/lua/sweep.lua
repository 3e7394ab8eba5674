#!lua flags=allow-oom
-- Take a job back whose lease is over: its worker has died, is cut off, or has too much to do to renew in time.
-- A lapse counts as a crash unless its worker shows life afterwards: whether it did, the job's next lapse looks. Before
-- crashes make it poison, its last worker has a respite in which to show life, or to renew.
-- KEYS  job, pending, queue, leases, story, workers
-- ARGV  id, crashes that make it poison, lapses that are too many though its workers live, respite (ms)
-- Returns queued | poison, lapsed (to be settled as such) | none (not over, not held, or with a respite)
local id, max_crashes, max_lapses = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local version, state, token, owner, suspect =
  unpack(redis.call('HMGET', KEYS.job, 'v', 'state', 'token', 'owner', 'suspect'))
if version ~= VERSION or not is_held(state) then return 'none' end
if tonumber(redis.call('ZSCORE', KEYS.leases, id)) > NOW then return 'none' end

-- Of the last lapse: the job's token, when it was, and the worker that may have died.
local lapsed, since, worker = string.match(suspect or '', '^(%d+) (%d+) (.*)$')
local lives = false
for _, seen in ipairs(lapsed and redis.call('ZRANGE', KEYS.workers, '(' .. since, '+inf', 'BYSCORE') or {}) do
  lives = lives or string.sub(seen, 1, #worker + 1) == worker .. ' '
end
if lives then
  redis.call('HINCRBY', KEYS.job, 'crashes', -1)
  redis.call('HDEL', KEYS.job, 'suspect')
end

local verdict = lapsed == token and not lives and 'poison'
if lapsed ~= token then
  redis.call('HSET', KEYS.job, 'suspect', token .. ' ' .. NOW .. ' ' .. owner)
  if redis.call('HINCRBY', KEYS.job, 'lapses', 1) >= max_lapses then verdict = 'lapsed' end
  if redis.call('HINCRBY', KEYS.job, 'crashes', 1) >= max_crashes and not verdict then
    redis.call('ZADD', KEYS.leases, NOW + ARGV[4], id)
    return 'none'
  end
end
if verdict then
  redis.call('HSET', KEYS.job, 'given_up', token)
  return verdict
end
redis.call('ZREM', KEYS.leases, id)
publish(id, true)
tell('"event":"taken_back","crashes":' .. redis.call('HGET', KEYS.job, 'crashes'))
return 'queued'
