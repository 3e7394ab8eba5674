#!lua flags=allow-oom
-- What isn't decided by a circuit: a cooldown that the provider asked for, a bad key, an operator's word.
--
-- KEYS  endpoints
-- ARGV  blocked | disabled | isolated | restored, reason, for (ms), then the endpoints
local what, reason = ARGV[1], ARGV[2]
for i = 4, #ARGV do
  local known = known_of(ARGV[i])
  if what == 'blocked' then
    if known.blocked_until <= NOW then -- once a cooldown, however many calls ran into it
      local regrown = SQUEEZE_REGROWTH * math.max(0, (NOW - known.blocked_until) / 1000 - SQUEEZE_HOLD_S)
      known.share = math.max(SQUEEZE_LEAST, math.min(1, known.share + regrown) * SQUEEZE)
    end
    known.blocked_until, known.reason = math.max(known.blocked_until, NOW + ARGV[3]), reason
  elseif what == 'disabled' then
    known.disabled = reason
  elseif what == 'isolated' then
    known.isolated, known.reason = true, reason
  else
    known.open_until, known.trips, known.recovered_at, known.blocked_until, known.share = 0, 0, 0, 0, 1
    known.disabled, known.isolated, known.reason, known.probe, known.probe_until = nil, false, nil, nil, 0
    known.consecutive, known.proven, known.bad, known.weight = 0, 0, 0, 0
  end
  keep(ARGV[i], known)
end
return redis.status_reply('OK')
