#!lua flags=allow-oom
-- Close a half-open circuit after its probe succeeded: the ramp starts now, and what failed before is forgotten.
-- An ejection that was lengthened meanwhile stands.
--
-- KEYS  fleet
-- ARGV  endpoint
-- Returns its health, see shared.lua
local e, now = ARGV[1] .. '|', now_ms()
local known = redis.call('HMGET', KEYS[1], e .. 'open_until', e .. 'recovered_at', e .. 'disabled', e .. 'isolated')
local open_until, recovered_at = tonumber(known[1]) or 0, tonumber(known[2]) or 0
if not known[3] and not known[4] and open_until > 0 and open_until <= now and recovered_at < open_until then
  redis.call('HSET', KEYS[1], e .. 'recovered_at', now)
  redis.call('HDEL', KEYS[1], e .. 'probe', e .. 'probe_until', e .. 'consecutive', e .. 'proven', e .. 'bad',
    e .. 'weight')
end
return health_of(KEYS[1], e, now)
