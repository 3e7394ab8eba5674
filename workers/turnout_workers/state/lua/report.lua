#!lua flags=allow-oom
-- End a lease: free its place, correct tokens and money to what was used, count the outcome.
--
-- KEYS  endpoints, money, call_lease_ends, call_lease, latencies, usage, calls, account_usage, account_calls
-- ARGV  the report as JSON, a `Report` of store.py without what is None; the bucket of its latency
-- Returns {now, consecutive failures, those as they began, error rate, error weight, probe}
-- Of the endpoint, and of its account.
local usage_keys, calls_keys = {KEYS.usage, KEYS.account_usage}, {KEYS.calls, KEYS.account_calls}
local report = cjson.decode(ARGV[1])
local known = known_of(report.endpoint_id)
local decay = math.exp(-math.max(0, NOW - known[OUTCOMES_AT]) / 1000 / ERROR_MEMORY_S)
local weight, bad = known[WEIGHT] * decay, known[BAD] * decay

local function counters(probe)
  local rate = weight > 0 and bad / weight or 0
  local as_begun = known[ROW_TO] - known[ROW_FROM] + 1
  return {NOW, known[CONSECUTIVE], as_begun, string.format('%.17g', rate), string.format('%.17g', weight), probe}
end

local held, cost, accounts, late = unpack(redis.call('HMGET', KEYS.call_lease, 'call', 'cost', 'accounts', 'expired'))
local call = held and cmsgpack.unpack(held) or {}
if call.endpoint ~= report.endpoint_id then return counters(0) end -- reported before, or forgotten
redis.call('DEL', KEYS.call_lease)
redis.call('ZREM', KEYS.call_lease_ends, report.endpoint_id .. ' ' .. report.lease_id)
for i in ipairs(call.buckets) do redis.call('ZREM', calls_keys[i], report.lease_id) end
count_calls(known, KEYS.calls)

local changes = {spent = report.cost_microusd, unsure = report.unsure_microusd, reserved = 0}
local reserved_as = late and 'unsure' or 'reserved'
changes[reserved_as] = changes[reserved_as] - cost
for _, account in ipairs(cjson.decode(accounts)) do book(account, changes) end

-- Set the charge right in the buckets in which it was made, while they count. A request stays a request.
local error = {0, report.input_tokens - call.use[2], report.output_tokens - call.use[3]}
local function correct(key, name, window, bucket)
  if bucket == window.newest then
    add(window.bucket, error)
  else
    local packed = redis.call('HGET', key, name .. bucket)
    if not packed then return end -- it has left the window
    local values = cmsgpack.unpack(packed)
    add(values, error)
    redis.call('HSET', key, name .. bucket, cmsgpack.pack(values))
  end
  add(window.sum, error)
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
    if told.limit then header.limit, header.holds = told.limit, NOW + ms(TOLD_S) end
    local kind = kind_of(told.kind)
    if told.remaining and told.reset_s and kind then
      local sum = total(call.charged, kind)
      if not header.told or header['until'] <= NOW or sum >= header.told then
        local reset_s = math.min(told.reset_s, RESET_MOST_S[kind[2]])
        header.total, header['until'], header.told = sum + told.remaining, NOW + ms(reset_s), sum
      end
    end
    headers[told.kind] = header
  end
end

if error[2] ~= 0 or error[3] ~= 0 or #report.limits > 0 then
  for i, bucket in ipairs(call.buckets) do
    local usage = usage_of(usage_keys[i])
    correct(usage_keys[i], 'minute', usage.minute, bucket[1])
    correct(usage_keys[i], 'day', usage.day, bucket[2])
    if i == 1 then learn(usage.headers) end
    keep_usage(usage_keys[i], usage)
  end
end

-- Failures in a row by the order in which calls began, of which each has its number: a success breaks only a row that
-- began before it, and a call that has not ended stands in its place like one.
local function row(number)
  if report.ok then
    if number > known[ROW_TO] then known[ROW_FROM], known[ROW_TO] = number + 1, number end
  elseif number == known[ROW_FROM] - 1 then
    known[ROW_FROM] = number
  elseif number > known[ROW_TO] then
    if number > known[ROW_TO] + 1 then known[ROW_FROM] = number end
    known[ROW_TO] = number
  end
end

-- What a call says that was made before an ejection is no news; but a probe's outcome always is.
local probe = call.probe > 0 and call.probe == known[PROBE]
if probe then known[PROBE_UNTIL] = NOW + ms(VERDICT_S) end
if report.counts and (probe or call.at >= known[OPEN_UNTIL]) then
  weight, bad = weight + 1, bad + (report.ok and 0 or 1)
  known[WEIGHT], known[BAD], known[OUTCOMES_AT] = weight, bad, NOW
  known[CONSECUTIVE] = report.ok and 0 or known[CONSECUTIVE] + 1
  known[PROVEN] = known[PROVEN] + (report.ok and 1 or 0)
  row(call.charged[1])
end

-- As `latency.step`: slow samples count more, and a second one below half the estimate counts most.
local function step(field, low_field, sample)
  local estimate, low = known[field], false
  if estimate >= 0 then
    low = sample < estimate / 2
    local relieved = low and known[low_field] == 1
    local least = relieved and STEP_RELIEF or sample > estimate and STEP_SLOWER or STEP_FASTER
    local share = math.max(least, 1 - math.exp(-math.max(0, NOW - known[LATENCY_AT]) / 1000 / MEMORY_S))
    sample = estimate + share * (sample - estimate)
  end
  known[field], known[low_field] = sample, low and 1 or 0
end

if report.ok and report.latency_s then
  local first = report.latency_s
  if report.output_tokens > 0 then first = report.ttft_s end
  if first then step(TTFT, TTFT_LOW, first) end
  if report.output_tokens > 0 then
    step(PACE, PACE_LOW, math.max(0, report.latency_s - (first or math.max(known[TTFT], 0))) / report.output_tokens)
  end
  if report.predicted_s and report.predicted_s > 0 then
    local residual = math.log(math.max(report.latency_s, 0.001) / report.predicted_s)
    residual = math.max(-MAX_RESIDUAL, math.min(MAX_RESIDUAL, residual))
    known[RESIDUAL] = known[RESIDUAL] + SIGMA_STEP * (residual * residual - known[RESIDUAL])
  end
  known[LATENCY_AT], known[SAMPLES] = NOW, known[SAMPLES] + 1
  redis.call('HINCRBY', KEYS.latencies, report.endpoint_id .. ' ' .. ARGV[2], 1)
end

if report.ok and report.input_tokens > 0 then
  known[CACHED] = known[CACHED] + CACHED_STEP * (math.min(1, report.cached_tokens / report.input_tokens) - known[CACHED])
end
known[CALLS], known[FAILURES] = known[CALLS] + 1, known[FAILURES] + (report.ok and 0 or 1)
known[SPENT] = known[SPENT] + report.cost_microusd
keep(report.endpoint_id, known)
return counters(probe and 1 or 0)
