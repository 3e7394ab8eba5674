-- Put before every script of the fleet's state, after the clock and the constants of redis.py.

-- What calls take is kept as text: {bucket or total of a window, requests, input tokens, output tokens}.
local function numbers(text)
  local first, second, third, fourth = string.match(text or '', '(%d+) (%-?%d+) (%-?%d+) (%-?%d+)')
  return {tonumber(first) or 0, tonumber(second) or 0, tonumber(third) or 0, tonumber(fourth) or 0}
end

local function text(values)
  return string.format('%d %d %d %d', values[1], values[2], values[3], values[4])
end

local function total(values, counters)
  local sum = 0
  for _, counter in ipairs(counters) do sum = sum + values[counter] end
  return sum
end

-- Every limit: its name, its window, and the counters it adds up (2 requests, 3 input, 4 output).
local KINDS = {
  {'requests_per_minute', 'minute', {2}}, {'tokens_per_minute', 'minute', {3, 4}},
  {'input_tokens_per_minute', 'minute', {3}}, {'output_tokens_per_minute', 'minute', {4}},
  {'requests_per_day', 'day', {2}}, {'tokens_per_day', 'day', {3, 4}},
}
local COUNTERS = {}
for _, kind in ipairs(KINDS) do COUNTERS[kind[1]] = kind[3] end

-- The health of an endpoint, `e` being `ENDPOINT|`, as `_health` of redis.py reads it: {open until, trips, recovered at,
-- blocked until, disabled, isolated, reason, consecutive, proven, probing}.
local function health_of(fleet, e, now)
  local health = redis.call('HMGET', fleet, e .. 'open_until', e .. 'trips', e .. 'recovered_at', e .. 'blocked_until',
    e .. 'disabled', e .. 'isolated', e .. 'reason', e .. 'consecutive', e .. 'proven', e .. 'probe_until')
  health[10] = (tonumber(health[10] or nil) or 0) > now and 1 or 0
  return health
end
