#!lua flags=allow-oom
-- Eject an endpoint: open until max(old, now + for). A trip while open lengthens, but doesn't count twice.
--
-- KEYS  endpoints
-- ARGV  endpoint, for (ms), reason
-- Returns {now, what is known of it as JSON}
local known = known_of(ARGV[1])
if known.open_until <= NOW then
  local well = known.recovered_at > 0 and NOW - known.recovered_at >= WELL_S * 1000
  known.trips = (well and 0 or known.trips) + 1
end
known.open_until, known.reason = math.max(known.open_until, NOW + ARGV[2]), ARGV[3]
known.probe, known.probe_until = nil, 0
keep(ARGV[1], known)
return {NOW, cjson.encode(known)}
