#!lua flags=allow-oom
-- End leases that were not renewed: their places are free, their reservations unsure. The lease itself is kept
-- for a day, so that a late report finds what to move.
--
-- KEYS  fleet, money, expiry; then of each lease: itself, calls of its endpoint, calls of its account
-- ARGV  `ENDPOINT LEASE` of each, in the order of their keys
-- Returns how many
local FLEET, MONEY, EXPIRY = KEYS[1], KEYS[2], KEYS[3]
local now, ended = now_ms(), 0
for i, member in ipairs(ARGV) do
  local score = tonumber(redis.call('ZSCORE', EXPIRY, member) or nil)
  if score and score <= now then -- neither renewed nor reported meanwhile
    local lease_key, calls_key, shared_key = KEYS[1 + 3 * i], KEYS[2 + 3 * i], KEYS[3 + 3 * i]
    local endpoint, id = string.match(member, '^(%S+) (.*)$')
    local lease = redis.call('HMGET', lease_key, 'cost', 'accounts')
    for _, account in ipairs(cjson.decode(lease[2] or '[]')) do
      redis.call('HINCRBY', MONEY, account .. '|reserved', -lease[1])
      redis.call('HINCRBY', MONEY, account .. '|unsure', lease[1])
    end
    redis.call('HSET', lease_key, 'expired', 1)
    redis.call('PEXPIRE', lease_key, DAY.width * DAY.span)
    redis.call('ZREM', EXPIRY, member)
    redis.call('ZREM', calls_key, id)
    redis.call('ZREM', shared_key, id)
    local oldest = redis.call('ZRANGE', calls_key, 0, 0, 'WITHSCORES')
    redis.call('HSET', FLEET, endpoint .. '|in_flight', redis.call('ZCARD', calls_key),
      endpoint .. '|oldest', oldest[2] or 0)
    ended = ended + 1
  end
end
return ended
