#!lua flags=allow-oom
-- Close a half-open circuit after its probe succeeded: the ramp starts now, and earlier failures are forgotten. An
-- ejection that was lengthened meanwhile stands.
--
-- KEYS  endpoints
-- ARGV  endpoint
local record = record_of(ARGV[1])
local over = record[OPEN_UNTIL] <= NOW and record[RECOVERED_AT] < record[OPEN_UNTIL]
if over and record[DISABLED] == 0 and record[ISOLATED] == 0 then
  record[RECOVERED_AT], record[PROBE], record[PROBE_UNTIL] = NOW, 0, 0
  record[CONSECUTIVE], record[PROVEN], record[BAD_WEIGHT], record[WEIGHT] = 0, 0, 0, 0
  keep(ARGV[1], record)
end
