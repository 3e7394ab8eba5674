-- Put before every script of the fleet's state, after the clock and the constants of redis.py.
local NOW = now_ms()

-- All that is known of an endpoint is one record, packed: so a script reads it and writes it in one step each.
-- Records that an older release made lack the fields that are new since.
local function known_of(endpoint)
  local packed = redis.call('HGET', KEYS.endpoints, endpoint)
  if packed then return cmsgpack.unpack(packed) end
  return {
    -- Its health. There may be, too: `disabled` and `reason`, texts, and `probe`, the lease of the probe.
    open_until = 0, trips = 0, recovered_at = 0, blocked_until = 0, share = 1, isolated = false, probe_until = 0,
    consecutive = 0, proven = 0, weight = 0, bad = 0, outcomes_at = 0,
    -- Its metrics. Once there were samples, also: `ttft`, `pace`, whether the last of each was low, and `latency7`, how
    -- many latencies were in bucket 7.
    residual = RESIDUAL_FIRST, latency_at = 0, samples = 0, cached = 0,
    calls = 0, failures = 0, input = 0, output = 0, spent = 0,
    -- Its load.
    in_flight = 0, oldest = 0, free = 1, free_at = 0, ready_at = 0, slots = -1, shadow_price = 0,
  }
end

local function keep(endpoint, known) redis.call('HSET', KEYS.endpoints, endpoint, cmsgpack.pack(known)) end

-- What calls take: {requests, input tokens, output tokens}.
local function add(values, others, sign)
  for i = 1, 3 do values[i] = values[i] + (sign or 1) * others[i] end
end

-- What the calls to an endpoint, or a whole account, took: all that were ever made, and those of a minute and a day.
-- A window has the number of its newest bucket, what is in it, and the sum of all; its older buckets lie beside it.
-- `headers` is what the provider said, by limit.
local function usage_of(key)
  local packed = redis.call('HGET', key, 'now')
  if packed then return cmsgpack.unpack(packed) end
  local function window() return {newest = 0, bucket = {0, 0, 0}, sum = {0, 0, 0}} end
  return {minute = window(), day = window(), charged = {0, 0, 0}, headers = {}}
end

local function keep_usage(key, usage) redis.call('HSET', key, 'now', cmsgpack.pack(usage)) end

-- Every limit: its name, its window, and the first and last of the counters that it adds up.
local KINDS = {
  {'requests_per_minute', 'minute', 1, 1}, {'tokens_per_minute', 'minute', 2, 3},
  {'input_tokens_per_minute', 'minute', 2, 2}, {'output_tokens_per_minute', 'minute', 3, 3},
  {'requests_per_day', 'day', 1, 1}, {'tokens_per_day', 'day', 2, 3},
}

local function total(values, kind)
  local sum = 0
  for i = kind[3], kind[4] do sum = sum + values[i] end
  return sum
end
