#!lua flags=allow-oom
-- Close a half-open circuit after its probe succeeded: the ramp starts now, and what failed before is forgotten.
-- An ejection that was lengthened meanwhile stands.
--
-- KEYS  endpoints
-- ARGV  endpoint
local known = known_of(ARGV[1])
local over = known[OPEN_UNTIL] <= NOW and known[RECOVERED_AT] < known[OPEN_UNTIL]
if over and known[DISABLED] == 0 and known[ISOLATED] == 0 then
  known[RECOVERED_AT], known[PROBE], known[PROBE_UNTIL] = NOW, 0, 0
  known[CONSECUTIVE], known[PROVEN], known[BAD], known[WEIGHT] = 0, 0, 0, 0
  keep(ARGV[1], known)
end
