#!lua flags=allow-oom
-- What isn't decided by a circuit: a cooldown that the provider asked for, a bad key, an operator's word.
--
-- KEYS  fleet
-- ARGV  blocked | disabled | isolated | restored, reason, for (ms); then the endpoints
local FLEET, what, reason, now = KEYS[1], ARGV[1], ARGV[2], now_ms()
for i = 4, #ARGV do
  local e = ARGV[i] .. '|'
  if what == 'blocked' then
    local known = redis.call('HMGET', FLEET, e .. 'blocked_until', e .. 'share')
    local till, share = tonumber(known[1]) or 0, tonumber(known[2]) or 1
    if till <= now then -- once a cooldown, however many calls ran into it
      local regrown = SQUEEZE_REGROWTH * math.max(0, (now - till) / 1000 - SQUEEZE_HOLD_S)
      share = math.max(SQUEEZE_LEAST, math.min(1, share + regrown) * SQUEEZE)
    end
    redis.call('HSET', FLEET, e .. 'blocked_until', math.max(till, now + ARGV[3]), e .. 'share', share,
      e .. 'reason', reason)
  elseif what == 'disabled' then
    redis.call('HSET', FLEET, e .. 'disabled', reason)
  elseif what == 'isolated' then
    redis.call('HSET', FLEET, e .. 'isolated', 1, e .. 'reason', reason)
  else
    local gone = {}
    for _, name in ipairs({'open_until', 'trips', 'recovered_at', 'proven', 'blocked_until', 'share', 'disabled',
      'isolated', 'reason', 'consecutive', 'bad', 'weight', 'probe', 'probe_until'}) do gone[#gone + 1] = e .. name end
    redis.call('HDEL', FLEET, unpack(gone))
  end
end
return redis.status_reply('OK')
