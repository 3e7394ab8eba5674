#!lua flags=allow-oom
-- End leases that were not renewed: their slots become free, their reservations unsure. The lease itself is kept for a
-- day, so that a late report can be booked.
--
-- KEYS  endpoints, money, call_lease_ends, then for each lease: itself, calls of its endpoint, calls of its account
-- ARGV  `ENDPOINT LEASE` for each, in the order of their keys
-- Returns how many
local ended = 0
for i, member in ipairs(ARGV) do
  local score = tonumber(redis.call('ZSCORE', KEYS.call_lease_ends, member) or nil)
  if score and score <= NOW then -- neither renewed nor reported meanwhile
    local lease_key, calls_key, shared_key = KEYS[1 + 3 * i], KEYS[2 + 3 * i], KEYS[3 + 3 * i]
    local endpoint, id = string.match(member, '^(%S+) (.*)$')
    local cost, accounts = unpack(redis.call('HMGET', lease_key, 'cost', 'accounts'))
    for _, account in ipairs(cjson.decode(accounts or '[]')) do book(account, {reserved = -cost, unsure = cost}) end
    redis.call('HSET', lease_key, 'expired', 1)
    redis.call('PEXPIRE', lease_key, DAY.width * DAY.span)
    redis.call('ZREM', KEYS.call_lease_ends, member)
    redis.call('ZREM', calls_key, id)
    redis.call('ZREM', shared_key, id)
    local record = record_of(endpoint)
    count_calls(record, calls_key)
    keep(endpoint, record)
    ended = ended + 1
  end
end
return ended
