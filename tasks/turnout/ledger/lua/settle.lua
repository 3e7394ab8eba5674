#!lua flags=allow-oom
-- End a job, once: store its result, for the ledger and for Celery, and notify those who wait. An answer, which may be
-- large, is stored only once, in Celery's record.
-- KEYS  job, job_leases, delayed, deadlines, failed, counts, story, result, done, turns, awaiting_turn, stream,
--       webhooks, parked, batch, retention, all_lanes
-- ARGV  id, authority, token, status, result (JSON; '' of a success), Celery's record (JSON), event (JSON fields),
--       time to live (ms), time to live (ms) of a failed job if that is longer, batch ('': none)
-- A job that isn't ended by its worker is kept as long as workers have announced, which a client may not know.
-- authority  token: the worker that holds it, and for a success any that ever held it
--            spool: the same, from its disk, later
--            cancel: any client; expire: past its deadline, not held; sweep: poison, lease over
-- Returns {outcome, state before}: settled | salvaged | repeated | duplicate | fenced | gone | refused
local id, authority, token, status, batch = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[10]
local by_worker = authority == 'token' or authority == 'spool'
local version, state, current, settled_token, deadline, own_batch, lane, turn, member, streams, webhook, watchers =
  job_fields('v', 'state', 'token', 'settled_token', 'deadline_ms', 'batch', 'lane', 'turn', 'spot', 'stream',
    'webhook', 'watchers')
if not state then return {'gone', ''} end
if version ~= VERSION then return {'refused', state} end
if not is_live(state) then
  if not by_worker or settled_token ~= token then return {'duplicate', state} end
  if authority == 'token' then
    if job_fields('unheard') == '0' then return {'fenced', state} end -- another worker tells Celery
    redis.call('HDEL', KEYS.job, 'unheard')
  end
  return {'repeated', state}
end

local outcome = 'settled'
if by_worker then
  if not is_held(state) or token ~= current then
    -- A success was paid for, so any attempt may bring it, but only one that was once made.
    if status ~= 'succeeded' or tonumber(token) < 1 or tonumber(token) > tonumber(current) then
      return {'fenced', state}
    end
    outcome = 'salvaged'
  end
elseif authority == 'expire' then
  if is_held(state) or deadline == '0' or tonumber(deadline) > NOW then return {'refused', state} end
elseif authority == 'sweep' then
  if not has_lapsed(id, state) then return {'refused', state} end
end
if (own_batch or '') ~= batch then
  return redis.error_reply('ERR job ' .. id .. ' is of batch "' .. (own_batch or '') .. '"')
end

if state == 'queued' then redis.call('ZREM', (lane_keys(lane)), id) end
-- A worker that ends its own job tells Celery. Any other end is told by the first worker that gets a message of the
-- job. If there may be no message left, publish one more, while the callbacks that it carries still exist.
if authority ~= 'token' then
  redis.call('HSET', KEYS.job, 'unheard', 1)
  if state ~= 'queued' then push(id) end
end
redis.call('HSET', KEYS.job, 'state', status, 'settled_ms', NOW, 'settled_token', token)
if ARGV[5] ~= '' then redis.call('HSET', KEYS.job, 'result', ARGV[5]) end
-- Drop what isn't needed any more. Progress stays if the result comes from a caller that didn't know it.
local gone = {'owner', 'claim', 'watchers', 'readers', 'republished', 'suspect'}
if by_worker then gone[#gone + 1] = 'progress' end
if authority == 'token' then gone[#gone + 1] = 'unheard' end -- from before a replay
if status == 'succeeded' then gone[#gone + 1], gone[#gone + 2] = 'payload', 'embed' end
redis.call('HDEL', KEYS.job, unpack(gone))
if is_held(state) then redis.call('ZREM', KEYS.job_leases, id) end
if deadline ~= '0' then redis.call('ZREM', KEYS.deadlines, id) end
if member then unpark(member) end
if turn then end_turn(turn) end
redis.call('HINCRBY', KEYS.counts, status, 1)

local result_ttl = tonumber(not by_worker and redis.call('GET', KEYS.retention) or ARGV[8])
local ttl = status == 'failed' and math.max(result_ttl, tonumber(ARGV[9])) or result_ttl
-- A detached batch counts its own, and its results are kept as long as its record.
local kept = batch == '' and -2 or redis.call('TTL', KEYS.batch)
local detached = kept ~= -2
if kept * 1000 > ttl then ttl = kept * 1000 end
if status == 'failed' then
  redis.call('ZADD', KEYS.failed, NOW + ttl, id)
  redis.call('ZREMRANGEBYSCORE', KEYS.failed, '-inf', NOW)
  redis.call('PEXPIRE', KEYS.failed, redis.call('ZRANGE', KEYS.failed, -1, -1, 'WITHSCORES')[2] - NOW)
end
add_event(ARGV[7])
redis.call('PEXPIRE', KEYS.job, ttl)
redis.call('PEXPIRE', KEYS.story, ttl)
redis.call('SET', KEYS.result, ARGV[6], 'PX', status == 'succeeded' and ttl or result_ttl)
redis.call('PUBLISH', KEYS.result, ARGV[6])
if detached then
  redis.call('HINCRBY', KEYS.batch, status, 1)
elseif batch ~= '' then
  redis.call('RPUSH', KEYS.done, id)
  redis.call('PEXPIRE', KEYS.done, ttl)
end
if streams then
  redis.call('XADD', KEYS.stream, '*', 'end', status)
  redis.call('PEXPIRE', KEYS.stream, ttl)
end
if webhook then
  local delivery = webhook .. ' ' .. NOW .. ' ' .. id
  redis.call('HSET', KEYS.job, 'hook', delivery)
  redis.call('ZADD', KEYS.webhooks, 0, delivery)
end
notify(watchers, id)
return {outcome, state}
