#!lua flags=allow-oom
-- What isn't decided by a circuit: a cooldown that the provider asked for, a bad key, an operator's word.
--
-- KEYS  endpoints, then usage of each
-- ARGV  cooldown | disabled | isolated | restored, reason, for (ms), then the endpoints
local what, till = ARGV[1], NOW + ARGV[3]
for i = 4, #ARGV do
  local endpoint, tells = ARGV[i], what ~= 'restored'
  local record = record_of(endpoint)
  if what == 'cooldown' then
    if record[COOLDOWN_UNTIL] <= NOW then -- once a cooldown, however many calls ran into it
      record[SHARE] = math.max(MIN_SQUEEZE, share_of(record) * SQUEEZE)
    end
    tells = till > record[COOLDOWN_UNTIL]
    record[COOLDOWN_UNTIL] = math.max(record[COOLDOWN_UNTIL], till)
  elseif what == 'disabled' then
    record[DISABLED] = NOW
  elseif what == 'isolated' then
    record[ISOLATED] = NOW
  else
    local first = fresh()
    for _, field in ipairs(RESTORED) do record[field] = first[field] end
    local usage = usage_of(KEYS[i - 2])
    usage.headers = {}
    keep_usage(KEYS[i - 2], usage)
  end
  keep(endpoint, record)
  if tells then redis.call('HSET', KEYS.endpoints, endpoint .. ' ' .. what, ARGV[2]) end
end
