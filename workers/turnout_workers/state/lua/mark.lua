#!lua flags=allow-oom
-- What isn't decided by a circuit: a cooldown that the provider asked for, a bad key, an operator's word.
--
-- KEYS  endpoints, then usage of each
-- ARGV  cooldown | disabled | isolated | restored, reason, for (ms), then the endpoints
local what, till = ARGV[1], NOW + ARGV[3]
for i = 4, #ARGV do
  local endpoint, tells = ARGV[i], what ~= 'restored'
  local known = known_of(endpoint)
  if what == 'cooldown' then
    if known[COOLDOWN_UNTIL] <= NOW then -- once a cooldown, however many calls ran into it
      known[SHARE] = math.max(SQUEEZE_LEAST, share_of(known) * SQUEEZE)
    end
    tells = till > known[COOLDOWN_UNTIL]
    known[COOLDOWN_UNTIL] = math.max(known[COOLDOWN_UNTIL], till)
  elseif what == 'disabled' then
    known[DISABLED] = NOW
  elseif what == 'isolated' then
    known[ISOLATED] = NOW
  else
    local first = fresh()
    for _, field in ipairs(RESTORED) do known[field] = first[field] end
    local usage = usage_of(KEYS[i - 2])
    usage.headers = {}
    keep_usage(KEYS[i - 2], usage)
  end
  keep(endpoint, known)
  if tells then redis.call('HSET', KEYS.endpoints, endpoint .. ' ' .. what, ARGV[2]) end
end
