#!lua flags=allow-oom
-- End a lease: free its place, correct tokens and money to what was used, count the outcome.
--
-- KEYS  fleet, money, expiry, lease; window and calls of the endpoint; and of its account
-- ARGV  the report as JSON: id, endpoint, ok, counts, input, output, cached, cost, unsure, latency, ttft, predicted
--       (seconds, absent: unknown), bucket (of the latency), limits of {kind, limit, remaining, reset (ms)}
-- Returns {now, consecutive failures, error rate, error weight, trips, probe}
local FLEET, MONEY, EXPIRY, LEASE, WINDOW, CALLS, SHARED, SHARED_CALLS = unpack(KEYS)
local report = cjson.decode(ARGV[1])
local now = now_ms()
local e = report.endpoint .. '|'

-- The endpoint's fields are read once, changed here, and written once.
local latency_bucket = 'latency' .. (report.bucket or '')
local names = {'consecutive', 'proven', 'weight', 'bad', 'outcomes_at', 'trips', 'open_until', 'probe', 'ttft', 'pace',
  'ttft_low', 'pace_low', 'residual', 'latency_at', 'samples', 'calls', 'failures', 'input', 'output', 'spent', 'cached',
  latency_bucket}
local fields = {}
for i, name in ipairs(names) do fields[i] = e .. name end
local known = {}
for i, value in ipairs(redis.call('HMGET', FLEET, unpack(fields))) do known[names[i]] = value end
local function get(name, default) return tonumber(known[name] or nil) or default end

local writes = {}
local function set(name, value)
  known[name] = value
  writes[#writes + 1] = e .. name
  writes[#writes + 1] = value
end

local function increase(name, amount) set(name, get(name, 0) + amount) end

local decay = math.exp(-(now - get('outcomes_at', 0)) / 1000 / ERROR_MEMORY_S)
local weight, bad = get('weight', 0) * decay, get('bad', 0) * decay

local function counters(probe)
  local rate = weight > 0 and bad / weight or 0
  return {now, get('consecutive', 0), string.format('%.17g', rate), string.format('%.17g', weight),
    get('trips', 0), probe}
end

local held = redis.call('HMGET', LEASE, 'at', 'use', 'second', 'quarter', 'charged', 'cost', 'accounts', 'expired',
  'endpoint', 'shared')
if held[9] ~= report.endpoint then return counters(0) end -- reported before, or forgotten
local at, use, charged, cost, late = tonumber(held[1]), numbers(held[2]), numbers(held[5]), held[6], held[8]
redis.call('DEL', LEASE)
redis.call('ZREM', EXPIRY, report.endpoint .. ' ' .. report.id)
redis.call('ZREM', CALLS, report.id)
local windows = {WINDOW}
if held[10] == '1' then
  redis.call('ZREM', SHARED_CALLS, report.id)
  windows[2] = SHARED
end
local oldest = redis.call('ZRANGE', CALLS, 0, 0, 'WITHSCORES')
set('in_flight', redis.call('ZCARD', CALLS))
set('oldest', oldest[2] or 0)

local function book(account, amount)
  if amount ~= 0 then redis.call('HINCRBY', MONEY, account, amount) end
end
for _, account in ipairs(cjson.decode(held[7])) do
  book(account .. (late and '|unsure' or '|reserved'), -cost)
  book(account .. '|spent', report.cost)
  book(account .. '|unsure', report.unsure)
end

-- Set the charge right in the buckets in which it was made, while they count. A request stays a request.
local error = {0, 0, report.input - use[3], report.output - use[4]}
if error[3] ~= 0 or error[4] ~= 0 then
  local second, quarter = tonumber(held[3]), tonumber(held[4])
  local sums = {'charged', 'minute', 'minute' .. second, 'day', 'day' .. quarter}
  for _, window in ipairs(windows) do
    local stored, changed = redis.call('HMGET', window, unpack(sums)), {}
    for i, value in ipairs(stored) do stored[i] = numbers(value) end
    local in_minute = second >= stored[2][1] - MINUTE.span
    local in_day = quarter >= stored[4][1] - DAY.span
    local counts_still = {true, in_minute, in_minute, in_day, in_day}
    for i, values in ipairs(stored) do
      if counts_still[i] then
        values[3], values[4] = values[3] + error[3], values[4] + error[4]
        changed[#changed + 1] = sums[i]
        changed[#changed + 1] = text(values)
      end
    end
    redis.call('HSET', window, unpack(changed))
  end
end

-- `remaining` counted this call and perhaps not those after it: it caps the total of charges until the reset.
if #report.limits > 0 then
  local headers = cjson.decode(redis.call('HGET', WINDOW, 'headers') or '{}')
  for _, told in ipairs(report.limits) do
    local header = headers[told.kind] or {}
    header.limit = told.limit or header.limit
    if told.remaining and told.reset and COUNTERS[told.kind] then
      local sum = total(charged, COUNTERS[told.kind])
      if not header.told or header['until'] <= now or sum >= header.told then
        header.total, header['until'], header.told = sum + told.remaining, now + told.reset, sum
      end
    end
    headers[told.kind] = header
  end
  redis.call('HSET', WINDOW, 'headers', cjson.encode(headers))
end

-- What a call says that was made before an ejection is no news; but a probe's outcome always is.
local probe = known.probe == report.id
if probe then set('probe_until', now + VERDICT_MS) end
if report.counts and (probe or at >= get('open_until', 0)) then
  weight, bad = weight + 1, bad + (report.ok and 0 or 1)
  set('weight', weight)
  set('bad', bad)
  set('outcomes_at', now)
  set('consecutive', report.ok and 0 or get('consecutive', 0) + 1)
  if report.ok then increase('proven', 1) end
end

-- As `latency.step`: slow samples count more, and a second one below half the estimate counts most.
local function step(name, sample)
  local estimate, elapsed = get(name), (now - get('latency_at', 0)) / 1000
  local low = estimate ~= nil and sample < estimate / 2
  if estimate then
    local relieved = low and known[name .. '_low'] == '1'
    local least = relieved and STEP_RELIEF or sample > estimate and STEP_SLOWER or STEP_FASTER
    local share = math.max(least, 1 - math.exp(-math.max(0, elapsed) / MEMORY_S))
    sample = estimate + share * (sample - estimate)
  end
  set(name, sample)
  set(name .. '_low', low and '1' or '0')
end

if report.ok and report.latency then
  local first = report.latency
  if report.output > 0 then first = report.ttft end
  if first then step('ttft', first) end
  if report.output > 0 then
    step('pace', math.max(0, report.latency - (first or get('ttft', 0))) / report.output)
  end
  if report.predicted and report.predicted > 0 then
    local residual = math.log(math.max(report.latency, 0.001) / report.predicted)
    residual = math.max(-RESIDUAL_MOST, math.min(RESIDUAL_MOST, residual))
    local mean = get('residual', RESIDUAL_FIRST)
    set('residual', mean + SIGMA_STEP * (residual * residual - mean))
  end
  set('latency_at', now)
  increase('samples', 1)
  increase(latency_bucket, 1)
end

if report.ok and report.input > 0 and (report.cached > 0 or known.cached) then
  local share = get('cached', 0)
  set('cached', share + CACHED_STEP * (math.min(1, report.cached / report.input) - share))
end
increase('calls', 1)
increase('failures', report.ok and 0 or 1)
increase('input', report.input)
increase('output', report.output)
increase('spent', report.cost)
redis.call('HSET', FLEET, unpack(writes))
return counters(probe and 1 or 0)
