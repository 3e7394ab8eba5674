#!lua flags=allow-oom
-- End a job, once: store its result, for the ledger and for Celery, and tell who waits.
-- KEYS  job, pending, leases, delayed, deadlines, failed, counts, story, result, done list of its batch
-- ARGV  id, authority, token, status, result (JSON), Celery's record (JSON), event (JSON fields),
--       time to live (ms), time to live if failed (ms), crashes that make it poison
-- authority  token: the worker that holds it, and for a success any that ever held it
--            cancel: anybody; expire: past its deadline, not held; poison: too many crashes, lease over
-- Returns {outcome, state before}: settled | salvaged | repeated | duplicate | fenced | gone | refused
local id, authority, token, status = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local job = redis.call('HMGET', KEYS[1], 'state', 'token', 'settled_token', 'deadline_ms', 'crashes', 'watchers', 'batch')
local state = job[1]
if not state then return {'gone', ''} end
local held = state == 'leased' or state == 'calling'
local waits = state == 'queued' or state == 'delayed'
if not (held or waits) then
  return {(authority == 'token' and job[3] == token) and 'repeated' or 'duplicate', state}
end

local now = now_ms()
local outcome = 'settled'
if authority == 'token' then
  local current = held and job[2] == token
  if not current then
    -- A success was paid for, so it counts whoever brings it; but only of an attempt that was once made.
    if status ~= 'succeeded' or tonumber(token) < 1 or tonumber(token) > tonumber(job[2]) then return {'fenced', state} end
    outcome = 'salvaged'
  end
elseif authority == 'expire' then
  local deadline = tonumber(job[4])
  if held or deadline == 0 or deadline > now then return {'refused', state} end
elseif authority == 'poison' then
  local ends = redis.call('ZSCORE', KEYS[3], id)
  if not held or not ends or tonumber(ends) > now or job[5] + 1 < tonumber(ARGV[10]) then return {'refused', state} end
end

local ttl = tonumber(status == 'failed' and ARGV[9] or ARGV[8])
redis.call('HSET', KEYS[1], 'state', status, 'result', ARGV[5], 'settled_ms', now, 'settled_token', token)
redis.call('HDEL', KEYS[1], 'owner', 'watchers', 'progress', 'message')
redis.call('PEXPIRE', KEYS[1], ttl)
redis.call('ZREM', KEYS[2], id)
redis.call('ZREM', KEYS[3], id)
redis.call('ZREM', KEYS[4], id)
redis.call('ZREM', KEYS[5], id)
redis.call('HINCRBY', KEYS[7], status, 1)
if status == 'failed' then redis.call('ZADD', KEYS[6], now, id) end
redis.call('RPUSH', KEYS[8], '{"at":' .. now .. ',' .. ARGV[7] .. '}')
redis.call('PEXPIRE', KEYS[8], ttl)
redis.call('SET', KEYS[9], ARGV[6], 'PX', ARGV[8])
redis.call('PUBLISH', KEYS[9], ARGV[6])
if job[7] and job[7] ~= '' then redis.call('RPUSH', KEYS[10], id) end
for inbox in string.gmatch(job[6] or '', '%S+') do redis.call('PUBLISH', inbox, id) end
return {outcome, state}
