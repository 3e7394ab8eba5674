#!lua flags=allow-oom
-- End a lease: free its place, correct tokens and money to what was used, count the outcome.
--
-- KEYS  endpoints, money, expiry, lease, usage, calls, then usage and calls of the account
-- ARGV  the report as JSON: id, endpoint, ok, counts, input, output, cached, cost, unsure, latency, ttft, predicted
--       (seconds, absent: unknown), bucket (of the latency), limits of {kind, limit, remaining, reset (ms)}
-- Returns {now, consecutive failures, error rate, error weight, trips, probe}
local USAGE, CALLS = {KEYS.usage, KEYS[7]}, {KEYS.calls, KEYS[8]} -- of the endpoint, and of its account
local report = cjson.decode(ARGV[1])
local known = known_of(report.endpoint)
local decay = math.exp(-(NOW - known.outcomes_at) / 1000 / ERROR_MEMORY_S)
local weight, bad = known.weight * decay, known.bad * decay

local function counters(probe)
  local rate = weight > 0 and bad / weight or 0
  return {NOW, known.consecutive, string.format('%.17g', rate), string.format('%.17g', weight), known.trips, probe}
end

local held, cost, accounts, late = unpack(redis.call('HMGET', KEYS.lease, 'call', 'cost', 'accounts', 'expired'))
local call = held and cmsgpack.unpack(held) or {}
if call.endpoint ~= report.endpoint then return counters(0) end -- reported before, or forgotten
redis.call('DEL', KEYS.lease)
redis.call('ZREM', KEYS.expiry, report.endpoint .. ' ' .. report.id)
for i in ipairs(call.buckets) do redis.call('ZREM', CALLS[i], report.id) end
known.in_flight = redis.call('ZCARD', KEYS.calls)
known.oldest = tonumber(redis.call('ZRANGE', KEYS.calls, 0, 0, 'WITHSCORES')[2] or 0)

local function book(account, amount)
  if amount ~= 0 then redis.call('HINCRBY', KEYS.money, account, amount) end
end
for _, account in ipairs(cjson.decode(accounts)) do
  book(account .. (late and '|unsure' or '|reserved'), -cost)
  book(account .. '|spent', report.cost)
  book(account .. '|unsure', report.unsure)
end

-- Set the charge right in the buckets in which it was made, while they count. A request stays a request.
local error = {0, report.input - call.use[2], report.output - call.use[3]}
local function correct(key, name, window, size, bucket)
  if bucket < window.newest - size.span then return end
  add(window.sum, error)
  if bucket == window.newest then return add(window.bucket, error) end
  local values = cmsgpack.unpack(redis.call('HGET', key, name .. bucket))
  add(values, error)
  redis.call('HSET', key, name .. bucket, cmsgpack.pack(values))
end

local function kind_of(name)
  for _, kind in ipairs(KINDS) do
    if kind[1] == name then return kind end
  end
end

-- `remaining` counted this call and perhaps not those after it: it caps the total of charges until the reset.
local function learn(headers)
  for _, told in ipairs(report.limits) do
    local header = headers[told.kind] or {}
    header.limit = told.limit or header.limit
    local kind = kind_of(told.kind)
    if told.remaining and told.reset and kind then
      local sum = total(call.charged, kind)
      if not header.told or header['until'] <= NOW or sum >= header.told then
        header.total, header['until'], header.told = sum + told.remaining, NOW + told.reset, sum
      end
    end
    headers[told.kind] = header
  end
end

if error[2] ~= 0 or error[3] ~= 0 or #report.limits > 0 then
  for i, bucket in ipairs(call.buckets) do
    local usage = usage_of(USAGE[i])
    add(usage.charged, error)
    correct(USAGE[i], 'minute', usage.minute, MINUTE, bucket[1])
    correct(USAGE[i], 'day', usage.day, DAY, bucket[2])
    if i == 1 then learn(usage.headers) end
    keep_usage(USAGE[i], usage)
  end
end

-- What a call says that was made before an ejection is no news; but a probe's outcome always is.
local probe = known.probe == report.id
if probe then known.probe_until = NOW + VERDICT_MS end
if report.counts and (probe or call.at >= known.open_until) then
  weight, bad = weight + 1, bad + (report.ok and 0 or 1)
  known.weight, known.bad, known.outcomes_at = weight, bad, NOW
  known.consecutive = report.ok and 0 or known.consecutive + 1
  known.proven = known.proven + (report.ok and 1 or 0)
end

-- As `latency.step`: slow samples count more, and a second one below half the estimate counts most.
local function step(name, sample)
  local estimate, low = known[name], false
  if estimate then
    low = sample < estimate / 2
    local relieved = low and known[name .. '_low']
    local least = relieved and STEP_RELIEF or sample > estimate and STEP_SLOWER or STEP_FASTER
    local share = math.max(least, 1 - math.exp(-math.max(0, NOW - known.latency_at) / 1000 / MEMORY_S))
    sample = estimate + share * (sample - estimate)
  end
  known[name], known[name .. '_low'] = sample, low
end

if report.ok and report.latency then
  local first = report.latency
  if report.output > 0 then first = report.ttft end
  if first then step('ttft', first) end
  if report.output > 0 then
    step('pace', math.max(0, report.latency - (first or known.ttft or 0)) / report.output)
  end
  if report.predicted and report.predicted > 0 then
    local residual = math.log(math.max(report.latency, 0.001) / report.predicted)
    residual = math.max(-RESIDUAL_MOST, math.min(RESIDUAL_MOST, residual))
    known.residual = known.residual + SIGMA_STEP * (residual * residual - known.residual)
  end
  known.latency_at, known.samples = NOW, known.samples + 1
  local bucket = 'latency' .. report.bucket
  known[bucket] = (known[bucket] or 0) + 1
end

if report.ok and report.input > 0 then
  known.cached = known.cached + CACHED_STEP * (math.min(1, report.cached / report.input) - known.cached)
end
known.calls, known.failures = known.calls + 1, known.failures + (report.ok and 0 or 1)
known.input, known.output = known.input + report.input, known.output + report.output
known.spent = known.spent + report.cost
keep(report.endpoint, known)
return counters(probe and 1 or 0)
