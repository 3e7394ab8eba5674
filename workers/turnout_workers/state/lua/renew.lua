#!lua flags=allow-oom
-- Prolong the leases that have not expired.
--
-- KEYS  fleet, expiry; then the leases
-- ARGV  ttl (ms); then the lease ids, in the order of their keys
local now = now_ms()
for i = 2, #ARGV do
  local lease = redis.call('HMGET', KEYS[i + 1], 'endpoint', 'probe')
  local member = (lease[1] or '') .. ' ' .. ARGV[i]
  if (tonumber(redis.call('ZSCORE', KEYS[2], member) or nil) or 0) > now then
    redis.call('ZADD', KEYS[2], now + ARGV[1], member)
    local probe = lease[1] .. '|probe'
    if lease[2] == '1' and redis.call('HGET', KEYS[1], probe) == ARGV[i] then
      redis.call('HSET', KEYS[1], probe .. '_until', now + ARGV[1])
    end
  end
end
return redis.status_reply('OK')
