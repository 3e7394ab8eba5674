#!lua flags=allow-oom
-- End a job, once: store its result, for the ledger and for Celery, and tell who waits.
-- KEYS  job, leases, delayed, deadlines, failed, counts, story, result, done, turns, in_line, stream, hooks, parked, batch,
--       all_pending
-- ARGV  id, authority, token, status, result (JSON), Celery's record (JSON), event (JSON fields),
--       time to live (ms), time to live if failed (ms), batch ('': none)
-- authority  token: the worker that holds it, and for a success any that ever held it
--            cancel: anybody; expire: past its deadline, not held; sweep: given up by it, lease over
-- Returns {outcome, state before}: settled | salvaged | repeated | duplicate | fenced | gone | refused
local id, authority, token, status, batch = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[10]
local job = redis.call('HMGET', KEYS[1], 'v', 'state', 'token', 'settled_token', 'deadline_ms', 'given_up',
  'watchers', 'batch', 'turn', 'stream', 'webhook', 'spot')
local state, current = job[2], job[3]
if not state then return {'gone', ''} end
if job[1] ~= VERSION then return {'refused', state} end
if not is_held(state) and not is_waiting(state) then
  return {(authority == 'token' and job[4] == token) and 'repeated' or 'duplicate', state}
end

local outcome = 'settled'
if authority == 'token' then
  if not is_held(state) or token ~= current then
    -- A success was paid for, so it counts whoever brings it; but only of an attempt that was once made.
    if status ~= 'succeeded' or tonumber(token) < 1 or tonumber(token) > tonumber(current) then
      return {'fenced', state}
    end
    outcome = 'salvaged'
  end
elseif authority == 'expire' then
  local deadline = tonumber(job[5])
  if is_held(state) or deadline == 0 or deadline > NOW then return {'refused', state} end
elseif authority == 'sweep' then
  if not is_held(state) or job[6] ~= current or tonumber(redis.call('ZSCORE', KEYS[2], id)) > NOW then
    return {'refused', state}
  end
end
if (job[8] or '') ~= batch then
  return redis.error_reply('ERR job ' .. id .. ' is of batch "' .. (job[8] or '') .. '"')
end

redis.call('HSET', KEYS[1], 'state', status, 'result', ARGV[5], 'settled_ms', NOW, 'settled_token', token)
redis.call('HDEL', KEYS[1], 'owner', 'watchers', 'readers', 'missed_ms', 'republished', 'suspect', 'given_up')
-- What nobody can need again. Progress stays where the result was not written by who knew it.
if status == 'succeeded' then redis.call('HDEL', KEYS[1], 'payload', 'embed') end
if authority == 'token' then redis.call('HDEL', KEYS[1], 'progress') end
redis.call('ZREM', KEYS[2], id)
if job[12] then unpark(KEYS[1], job[12], KEYS[3], KEYS[14]) end
redis.call('ZREM', KEYS[4], id)
for i = 16, #KEYS do redis.call('ZREM', KEYS[i], id) end
if job[9] then end_turn(KEYS[1], job[9], KEYS[10], KEYS[11]) end
redis.call('HINCRBY', KEYS[6], status, 1)

local ttl = tonumber(status == 'failed' and ARGV[9] or ARGV[8])
-- A detached batch counts its own, and its results are kept as long as its record.
local kept = batch == '' and -2 or redis.call('TTL', KEYS[15])
local detached = kept ~= -2
if kept * 1000 > ttl then ttl = kept * 1000 end
if status == 'failed' then
  redis.call('ZADD', KEYS[5], NOW + ttl, id)
  redis.call('ZREMRANGEBYSCORE', KEYS[5], '-inf', NOW)
end
tell(KEYS[7], ARGV[7])
redis.call('PEXPIRE', KEYS[1], ttl)
redis.call('PEXPIRE', KEYS[7], ttl)
redis.call('SET', KEYS[8], ARGV[6], 'PX', ARGV[8])
redis.call('PUBLISH', KEYS[8], ARGV[6])
if detached then
  redis.call('HINCRBY', KEYS[15], status, 1)
elseif batch ~= '' then
  redis.call('RPUSH', KEYS[9], id)
end
if job[10] then
  redis.call('XADD', KEYS[12], '*', 'end', status)
  redis.call('PEXPIRE', KEYS[12], ttl)
end
if job[11] then redis.call('ZADD', KEYS[13], NOW, id) end
for inbox in string.gmatch(job[7] or '', '%S+') do redis.call('PUBLISH', inbox, id) end
return {outcome, state}
