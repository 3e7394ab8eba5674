#!lua flags=allow-oom
-- Eject an endpoint: open until max(old, now + for). If it is open already, it doesn't count twice.
--
-- KEYS  endpoints
-- ARGV  endpoint, for (ms), reason
-- Returns 1, or 0 if it was out already
local record = record_of(ARGV[1])
local news = record[OPEN_UNTIL] <= NOW
if news then
  local well = record[RECOVERED_AT] > 0 and NOW - record[RECOVERED_AT] >= ms(WELL_S)
  record[EJECTIONS] = (well and 0 or record[EJECTIONS]) + 1
end
record[OPEN_UNTIL] = math.max(record[OPEN_UNTIL], NOW + ARGV[2])
record[PROBE], record[PROBE_UNTIL] = 0, 0
redis.call('HSET', KEYS.endpoints, ARGV[1] .. ' ejected', ARGV[3])
keep(ARGV[1], record)
return news and 1 or 0
