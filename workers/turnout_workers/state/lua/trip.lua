#!lua flags=allow-oom
-- Eject an endpoint: open until max(old, now + for). A trip while open lengthens, but doesn't count twice.
--
-- KEYS  fleet
-- ARGV  endpoint, for (ms), reason
-- Returns its health, see shared.lua
local e, now = ARGV[1] .. '|', now_ms()
local known = redis.call('HMGET', KEYS[1], e .. 'open_until', e .. 'trips', e .. 'recovered_at')
local open_until, trips = tonumber(known[1]) or 0, tonumber(known[2]) or 0
local recovered_at = tonumber(known[3]) or 0
if open_until <= now then
  local well = recovered_at > 0 and now - recovered_at >= WELL_S * 1000
  trips = (well and 0 or trips) + 1
end
redis.call('HSET', KEYS[1], e .. 'open_until', math.max(open_until, now + ARGV[2]), e .. 'trips', trips,
  e .. 'reason', ARGV[3])
redis.call('HDEL', KEYS[1], e .. 'probe', e .. 'probe_until')
return health_of(KEYS[1], e, now)
