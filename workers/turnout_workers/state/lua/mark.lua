#!lua flags=allow-oom
-- Set a state that no circuit decides: a cooldown that the provider asked for, a refused key, an operator's decision.
--
-- KEYS  endpoints, then usage of each
-- ARGV  cooldown | disabled | isolated | restored, reason, for (ms), when the refused call began (ms; 0: now), then the
--       endpoints
local what, till, begun = ARGV[1], NOW + ARGV[3], tonumber(ARGV[4])
for i = 5, #ARGV do
  local endpoint, tells = ARGV[i], what ~= 'restored'
  local record = record_of(endpoint)
  if what == 'cooldown' then
    if (begun > 0 and begun or NOW) >= record[COOLDOWN_UNTIL] then -- once per cooldown, however many calls ran into it
      record[SHARE] = math.max(MIN_SQUEEZE, share_of(record) * SQUEEZE)
      record[CARRIED] = record[IN_FLIGHT]
    end
    record[CARRIED] = math.min(record[CARRIED], record[IN_FLIGHT])
    tells = till > record[COOLDOWN_UNTIL]
    record[COOLDOWN_UNTIL] = math.max(record[COOLDOWN_UNTIL], till)
  elseif what == 'disabled' then
    record[DISABLED] = NOW
  elseif what == 'isolated' then
    record[ISOLATED] = NOW
  else
    local first = fresh()
    for _, field in ipairs(RESTORED) do record[field] = first[field] end
    local usage = usage_of(KEYS[i - 3])
    usage.headers = {}
    keep_usage(KEYS[i - 3], usage)
  end
  keep(endpoint, record)
  if tells then redis.call('HSET', KEYS.endpoints, endpoint .. ' ' .. what, ARGV[2]) end
end
