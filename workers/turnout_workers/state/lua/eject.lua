#!lua flags=allow-oom
-- Eject an endpoint: open until max(old, now + for). If it is open already, it doesn't count twice.
--
-- KEYS  endpoints
-- ARGV  endpoint, for (ms), reason
-- Returns 1, or 0 if it was out already
local known = known_of(ARGV[1])
local news = known[OPEN_UNTIL] <= NOW
if news then
  local well = known[RECOVERED_AT] > 0 and NOW - known[RECOVERED_AT] >= ms(WELL_S)
  known[EJECTIONS] = (well and 0 or known[EJECTIONS]) + 1
end
known[OPEN_UNTIL] = math.max(known[OPEN_UNTIL], NOW + ARGV[2])
known[PROBE], known[PROBE_UNTIL] = 0, 0
redis.call('HSET', KEYS.endpoints, ARGV[1] .. ' ejected', ARGV[3])
keep(ARGV[1], known)
return news and 1 or 0
