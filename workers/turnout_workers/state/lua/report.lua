#!lua flags=allow-oom
-- End a lease: free its slot, correct tokens and money to what was used, count the outcome.
--
-- KEYS  endpoints, money, call_lease_ends, call_lease, latencies, usage, calls, account_usage, account_calls
-- ARGV  the report as JSON: a `Report` of store.py without fields that are None; the bucket of its latency
-- Returns {now, consecutive failures, length of the run of failures, error rate, error weight, probe}
-- The endpoint, then its account.
local usage_keys, calls_keys = {KEYS.usage, KEYS.account_usage}, {KEYS.calls, KEYS.account_calls}
local report = cjson.decode(ARGV[1])
local record = record_of(report.endpoint_id)
local decay = math.exp(-math.max(0, NOW - record[OUTCOMES_AT]) / 1000 / ERROR_MEMORY_S)
local weight, bad = record[WEIGHT] * decay, record[BAD_WEIGHT] * decay

local function counters(probe)
  local rate = weight > 0 and bad / weight or 0
  local as_begun = record[RUN_TO] - record[RUN_FROM] + 1
  return {NOW, record[CONSECUTIVE], as_begun, string.format('%.17g', rate), string.format('%.17g', weight), probe}
end

local held, cost, accounts, late = unpack(redis.call('HMGET', KEYS.call_lease, 'call', 'cost', 'accounts', 'expired'))
local call = held and cmsgpack.unpack(held) or {}
if call.endpoint ~= report.endpoint_id then return counters(0) end -- reported before, or forgotten
redis.call('DEL', KEYS.call_lease)
redis.call('ZREM', KEYS.call_lease_ends, report.endpoint_id .. ' ' .. report.lease_id)
for i in ipairs(call.buckets) do redis.call('ZREM', calls_keys[i], report.lease_id) end
count_calls(record, KEYS.calls)

local changes = {spent = report.cost_microusd, unsure = report.unsure_microusd, reserved = 0}
local reserved_as = late and 'unsure' or 'reserved'
changes[reserved_as] = changes[reserved_as] - cost
for _, account in ipairs(cjson.decode(accounts)) do book(account, changes) end

-- Correct the charge in the buckets in which it was made, while they count. The request itself stays counted.
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

-- As `Usage.learn_from_headers`.
local function learn_from_headers(headers)
  for _, observed in ipairs(report.limits) do
    local header = headers[observed.kind] or {}
    if observed.limit then header.limit, header.holds = observed.limit, NOW + ms(ANNOUNCED_LIMIT_S) end
    local kind = kind_of(observed.kind)
    if observed.remaining and observed.reset_s and kind then
      local sum = total(call.charged, kind)
      if not header.charged or header['until'] <= NOW or sum >= header.charged then
        local reset_s = math.min(observed.reset_s, MAX_RESET_S[kind[2]])
        local refill = math.max(0, (observed.limit or 0) - observed.remaining)
        header.per_ms = observed.reset_s > 0 and refill / (observed.reset_s * 1000) or 0
        header.total, header['until'], header.charged = sum + observed.remaining, call.at + ms(reset_s), sum
        header.at = call.at
      end
    end
    headers[observed.kind] = header
  end
end

if error[2] ~= 0 or error[3] ~= 0 or #report.limits > 0 then
  for i, bucket in ipairs(call.buckets) do
    local usage = usage_of(usage_keys[i])
    correct(usage_keys[i], 'minute', usage.minute, bucket[1])
    correct(usage_keys[i], 'day', usage.day, bucket[2])
    if i == 1 then learn_from_headers(usage.headers) end
    keep_usage(usage_keys[i], usage)
  end
end

-- Update the run of failures, in the order in which calls began; `number` is that of this call. A success ends only a
-- run that began before it. A call that hasn't ended yet counts as a success.
local function count_run(number)
  if report.ok then
    if number > record[RUN_TO] then record[RUN_FROM], record[RUN_TO] = number + 1, number end
  elseif number == record[RUN_FROM] - 1 then
    record[RUN_FROM] = number
  elseif number > record[RUN_TO] then
    if number > record[RUN_TO] + 1 then record[RUN_FROM] = number end
    record[RUN_TO] = number
  end
end

-- A call that began before an ejection says nothing new; a probe always does.
local probe = call.probe > 0 and call.probe == record[PROBE]
if probe then record[PROBE_UNTIL] = NOW + ms(VERDICT_S) end
if report.counts and (probe or call.at >= record[OPEN_UNTIL]) then
  weight, bad = weight + 1, bad + (report.ok and 0 or 1)
  record[WEIGHT], record[BAD_WEIGHT], record[OUTCOMES_AT] = weight, bad, NOW
  record[CONSECUTIVE] = report.ok and 0 or record[CONSECUTIVE] + 1
  record[PROVEN] = record[PROVEN] + (report.ok and 1 or 0)
  count_run(call.charged[1])
end

-- See `latency.step`: slow samples count more, and a second one below half the estimate counts most.
local function step(field, low_field, sample)
  local estimate, low = record[field], false
  if estimate >= 0 then
    low = sample < estimate / 2
    local relieved = low and record[low_field] == 1
    local least = relieved and STEP_RELIEF or sample > estimate and STEP_SLOWER or STEP_FASTER
    local share = math.max(least, 1 - math.exp(-math.max(0, NOW - record[LATENCY_AT]) / 1000 / MEMORY_S))
    sample = estimate + share * (sample - estimate)
  end
  record[field], record[low_field] = sample, low and 1 or 0
end

if report.ok and report.latency_s then
  local first = report.latency_s
  if report.output_tokens > 0 then first = report.ttft_s end
  if first then step(TTFT, TTFT_LOW, first) end
  if report.output_tokens > 0 then
    local writing_s = math.max(0, report.latency_s - (first or math.max(record[TTFT], 0)))
    step(S_PER_TOKEN, S_PER_TOKEN_LOW, writing_s / report.output_tokens)
  end
  if report.predicted_s and report.predicted_s > 0 then
    local residual = math.log(math.max(report.latency_s, 0.001) / report.predicted_s)
    residual = math.max(-MAX_RESIDUAL, math.min(MAX_RESIDUAL, residual))
    record[RESIDUAL] = record[RESIDUAL] + SIGMA_STEP * (residual * residual - record[RESIDUAL])
  end
  record[LATENCY_AT], record[SAMPLES] = NOW, record[SAMPLES] + 1
  redis.call('HINCRBY', KEYS.latencies, report.endpoint_id .. ' ' .. ARGV[2], 1)
end

if report.ok and report.cached_share then
  record[CACHED] = record[CACHED] + CACHED_STEP * (report.cached_share - record[CACHED])
end
record[CALLS], record[FAILURES] = record[CALLS] + 1, record[FAILURES] + (report.ok and 0 or 1)
record[SPENT] = record[SPENT] + report.cost_microusd
keep(report.endpoint_id, record)
return counters(probe and 1 or 0)
