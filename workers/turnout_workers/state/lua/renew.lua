#!lua flags=allow-oom
-- Prolong the leases that have not expired.
--
-- KEYS  fleet, expiry; then the leases
-- ARGV  ttl (ms); then the lease ids, in the order of their keys
local now = now_ms()
for i = 2, #ARGV do
  local endpoint = redis.call('HGET', KEYS[i + 1], 'endpoint') or ''
  local member, probe = endpoint .. ' ' .. ARGV[i], endpoint .. '|probe'
  local ends_at = redis.call('ZSCORE', KEYS[2], member)
  if ends_at and tonumber(ends_at) > now then
    redis.call('ZADD', KEYS[2], now + ARGV[1], member)
    if redis.call('HGET', KEYS[1], probe) == ARGV[i] then
      redis.call('HSET', KEYS[1], probe .. '_until', now + ARGV[1])
    end
  end
end
return redis.status_reply('OK')
