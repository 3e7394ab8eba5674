#!lua flags=allow-oom
-- Close a half-open circuit after its probe succeeded: the ramp starts now, and what failed before is forgotten.
-- An ejection that was lengthened meanwhile stands.
--
-- KEYS  endpoints
-- ARGV  endpoint
-- Returns {now, what is known of it as JSON}
local known = known_of(ARGV[1])
local over = known.open_until > 0 and known.open_until <= NOW and known.recovered_at < known.open_until
if over and not known.disabled and not known.isolated then
  known.recovered_at, known.probe, known.probe_until = NOW, nil, 0
  known.consecutive, known.proven, known.bad, known.weight = 0, 0, 0, 0
  keep(ARGV[1], known)
end
return {NOW, cjson.encode(known)}
