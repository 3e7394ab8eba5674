#!lua
-- Accept a job and publish its message, both or neither.
-- KEYS  job, pending, deadlines, counts, story, intake, lane queue
-- ARGV  id, fingerprint, deadline (ms, 0: none), deadline from now (ms, 0: none), message ('': don't publish),
--       then fields and values of the record
-- Returns {outcome, state}: queued | duplicate | conflict | full | expired
local id, fingerprint, message = ARGV[1], ARGV[2], ARGV[5]

local known = redis.call('HMGET', KEYS[1], 'fingerprint', 'state')
if known[1] then
  return {known[1] == fingerprint and 'duplicate' or 'conflict', known[2]}
end
if redis.call('EXISTS', KEYS[6]) == 1 then return {'full', ''} end

local now = now_ms()
local deadline, within = tonumber(ARGV[3]), tonumber(ARGV[4])
if within > 0 and (deadline == 0 or now + within < deadline) then deadline = now + within end
if deadline > 0 and deadline <= now then return {'expired', ''} end

redis.call('HSET', KEYS[1], 'state', 'queued', 'fingerprint', fingerprint, 'accepted_ms', now,
  'queued_ms', now, 'deadline_ms', deadline, 'token', 0, 'crashes', 0, 'calls', 0, 'requeues', 0,
  unpack(ARGV, 6))
redis.call('ZADD', KEYS[2], now, id)
if deadline > 0 then redis.call('ZADD', KEYS[3], deadline, id) end
redis.call('HINCRBY', KEYS[4], 'accepted', 1)
redis.call('RPUSH', KEYS[5], '{"at":' .. now .. ',"event":"queued"}')
if message ~= '' then redis.call('LPUSH', KEYS[7], message) end
return {'queued', 'queued'}
