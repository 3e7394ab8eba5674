-- Lease the first bid that has room, or say what stands in the way of each, and until when.
--
-- KEYS  endpoints, money, call_lease_ends, call_lease, ceilings, then for each bid usage and calls of its endpoint, and
--       of its account if that has limits; then, if the admission is fenced, the record of the job's batch, if it has
--       one, and the job's record and story
-- ARGV  the ask as JSON: an `Ask` of store.py without fields that have their default
-- Returns {'granted', endpoint, at, probe} | {'fenced'} | {'full', now, {endpoint, until, reason} …};
--       `until` is -1 if waiting doesn't help
local NEVER = -1
local ask = cjson.decode(ARGV[1])
local ends_at, headroom = NOW + ms(ask.ttl_s), ask.headroom or 1

-- Subtract the buckets that have left a window from its sum. If the clock went back, charges go to the newest bucket;
-- if it went back by more than the window, all buckets are dropped.
local function roll(key, name, window, size)
  local last, newest = window.newest, math.floor(NOW / size.width)
  if newest <= last and newest >= last - size.span then return false end
  if last > 0 then
    redis.call('HSET', key, name .. last, cmsgpack.pack(window.bucket))
    local gone, to = {}, newest < last and last or math.min(last, newest - size.span - 1)
    for bucket = last - size.span, to do gone[#gone + 1] = name .. bucket end
    for _, bucket in ipairs(redis.call('HMGET', key, unpack(gone))) do
      if bucket then add(window.sum, cmsgpack.unpack(bucket), -1) end
    end
    redis.call('HDEL', key, unpack(gone))
  end
  window.newest, window.bucket = newest, {0, 0, 0}
  return true
end

local function need_of(bid) return {1, bid.input_tokens, bid.output_tokens} end

local function load_of(usage_key, calls_key)
  local usage = usage_of(usage_key)
  local minute = roll(usage_key, 'minute', usage.minute, MINUTE)
  local day = roll(usage_key, 'day', usage.day, DAY)
  if minute or day then keep_usage(usage_key, usage) end
  return {key = usage_key, calls_key = calls_key, usage = usage, in_flight = redis.call('ZCARD', calls_key)}
end

-- The first waiting job, unless it stopped asking or the clock went back.
local function first_of(usage)
  local first = usage.first
  return first and NOW >= first.at and NOW < first.at + ms(KEEP_FOR_S) and first
end

-- What is kept of the per-minute limits for the first waiting job, if this job comes after it.
local function kept_of(usage)
  local first = ask.position and first_of(usage)
  return first and first.place < ask.position and first.need or {0, 0, 0}
end

-- Keep room for a job that found none, unless one ahead of it waits.
local function keep_room(load, need)
  local first = first_of(load.usage)
  if first and first.place < ask.position then return end
  load.usage.first = {place = ask.position, need = need, at = NOW}
  keep_usage(load.key, load.usage)
end

-- The job has found room, here or elsewhere.
local function stop_keeping(load)
  if load.usage.first and load.usage.first.place == ask.position then
    load.usage.first = nil
    keep_usage(load.key, load.usage)
  end
end

-- Within the limit; or alone in the window, if a reserve, a squeeze or the limit itself allows less than one job.
local function fits(used, amount, limit, kept) return used + amount + kept <= limit or used + kept == 0 end

local function room_at(key, kind, window, amount, limit, kept)
  local used, name = total(window.sum, kind), kind[2]
  local size = name == 'minute' and MINUTE or DAY
  if fits(used, amount, limit, kept) then return 0 end
  local first, older = window.newest - size.span, {}
  for bucket = first, window.newest - 1 do older[#older + 1] = name .. bucket end
  for i, bucket in ipairs(redis.call('HMGET', key, unpack(older))) do
    if bucket then
      used = used - total(cmsgpack.unpack(bucket), kind)
      if fits(used, amount, limit, kept) then return (first + i + size.span) * size.width end
    end
  end
  return (window.newest + 1 + size.span) * size.width
end

-- Block if the circuit lets no call through. Returns whether it is half open, and whether it ramps.
local function circuit(record, block)
  local half_open, ramping = false, false
  if record[ISOLATED] > 0 then
    block(NEVER, 'isolated')
  elseif record[DISABLED] > 0 then
    block(NEVER, 'disabled')
  elseif record[OPEN_UNTIL] > NOW then
    block(record[OPEN_UNTIL], 'open')
  elseif record[RECOVERED_AT] < record[OPEN_UNTIL] then
    half_open = true
    if record[PROBE_UNTIL] > NOW then block(NOW + ms(ASK_AGAIN_S), 'probing') end
  else
    ramping = record[RECOVERED_AT] > 0 and NOW - record[RECOVERED_AT] < ms(RAMP_S)
  end
  if record[COOLDOWN_UNTIL] > NOW then block(record[COOLDOWN_UNTIL], 'cooldown') end
  return half_open, ramping
end

-- See `health.ramp_slots`.
local function ramp_slots(record)
  return math.max(2 ^ math.floor((NOW - record[RECOVERED_AT]) / 1000), CONSECUTIVE_FAILURES + record[PROVEN])
end

-- As `windows.slots_after`.
local function slots_after(record)
  local since_s = math.max(0, (NOW - record[COOLDOWN_UNTIL]) / 1000)
  return math.floor(math.max(1, record[CARRIED]) + since_s * (1 + SLOTS_REGROWTH * record[CARRIED]))
end

-- As `usage.Pace`, or nil.
local function pace_of(record, ramping)
  local pace = ramping and {share = RAMP_EXCESS, since = record[RECOVERED_AT]} or nil
  if record[COOLDOWN_UNTIL] > math.max(0, NOW - ms(PACED_S)) then
    local since = math.max(record[COOLDOWN_UNTIL], pace and pace.since or 0)
    pace = {share = share_of(record), since = since}
    if record[RECOVERED_AT] < record[COOLDOWN_UNTIL] then pace.slots = slots_after(record) end -- else it ramps
  end
  return pace
end

-- As `Window.unpaced`.
local function unpaced(key, kind, window, rate, since)
  local ahead, older, least = 0, {}, kind[3] == 1 and 0 or -CREDIT_S * rate
  for bucket = math.max(window.newest - MINUTE.span, math.floor(since / MINUTE.width)), window.newest - 1 do
    older[#older + 1] = kind[2] .. bucket
  end
  for _, bucket in ipairs(#older > 0 and redis.call('HMGET', key, unpack(older)) or {}) do
    ahead = math.max(least, ahead + (bucket and total(cmsgpack.unpack(bucket), kind) or 0) - rate)
  end
  return ahead + total(window.bucket, kind)
end

-- As `usage._Cap.left`.
local function cap_left(header, charged)
  if not (header and header.total and header['until'] > NOW) then return math.huge end
  return header.total + math.max(0, NOW - header.at) * header.per_ms - charged
end

-- As `usage._Cap.room_at`.
local function cap_room_at(header, charged)
  local grown_at = header.per_ms > 0 and header.at + (charged - header.total) / header.per_ms or header['until']
  return math.ceil(math.min(header['until'], grown_at))
end

-- As `Usage.in_force`; and whether a limit by the minute is among them.
local function in_force(load, limits)
  local found, by_minute = {}, false
  for _, kind in ipairs(KINDS) do
    local limit, header = limits[kind[1]], load.usage.headers[kind[1]]
    if header and NOW < (header.holds or 0) and (not limit or header.limit < limit) then limit = header.limit end
    found[kind[1]], by_minute = limit, by_minute or (limit and kind[2] == 'minute')
  end
  return found, by_minute
end

-- Block if a limit is full. Returns the free share of the scarcest limit, when that has room again, and for how many
-- tokens there is room before.
local function capacity(load, limits, slots, pace, bid, block)
  local allowed, by_minute = in_force(load, limits)
  if pace and pace.slots and not by_minute then slots = math.min(slots or math.huge, pace.slots) end
  if slots and load.in_flight >= math.min(slots, math.max(1, math.floor(slots * headroom))) then
    block(NOW + ms(ASK_AGAIN_S), 'concurrency')
  end
  local free, ready_at, fits, full, usage, use = 1, 0, math.huge, 0, load.usage, need_of(bid)
  local ahead = kept_of(usage)
  local function full_until(time, i, left)
    if time > ready_at then ready_at, full = time, i end
    fits = math.min(fits, KINDS[i][3] == 1 and 0 or left)
  end
  for i, kind in ipairs(KINDS) do
    local name, amount = kind[1], total(use, kind)
    local limit, header = allowed[name], usage.headers[name]
    if amount > 0 then
      local charged = total(usage.charged, kind)
      local left = cap_left(header, charged)
      if left < amount then
        local at = cap_room_at(header, charged + amount)
        block(at, name)
        full_until(at, i, left)
      end
      if limit then
        local window = usage[kind[2]]
        if pace and limit > 0 and kind[2] == 'minute' then
          local rate = pace.share * limit / MINUTE.span
          local too_early = unpaced(load.key, kind, window, rate, pace.since)
          if too_early >= rate * headroom then
            local till = window.newest + math.floor(too_early / rate - headroom) + 1
            block(till * MINUTE.width, 'pace of ' .. name)
          end
        end
        local kept = kind[2] == 'minute' and total(ahead, kind) or 0
        free = math.min(free, math.max(0, 1 - total(window.sum, kind) / math.max(limit, 1)))
        local at = room_at(load.key, kind, window, amount, limit * headroom, kept)
        if at ~= 0 then
          block(at, name)
          at = room_at(load.key, kind, window, amount, limit, 0) -- what the first one gets
          if at ~= 0 then full_until(at, i, limit - total(window.sum, kind)) end
        end
      end
    end
  end
  return free, ready_at, fits, full
end

-- All ceilings for a call to this bid's endpoint.
local function ceilings(bid)
  local all = {}
  for _, some in ipairs({ask.ceilings or {}, bid.ceilings or {}}) do
    for _, ceiling in ipairs(some) do all[#all + 1] = ceiling end
  end
  return all
end

local function money(bid, block)
  for _, ceiling in ipairs(ceilings(bid)) do
    local name, limit = ceiling.account, ceiling.limit_microusd
    -- A producer sets the ceiling of its batch, and of no other account.
    if not limit and string.sub(name, 1, 6) == 'batch:' then
      limit = tonumber(redis.call('HGET', KEYS.ceilings, name) or nil)
    end
    if limit and not bid.cost_microusd then
      block(NEVER, 'ceiling ' .. name)
    elseif limit then
      local sums = redis.call('HMGET', KEYS.money, name .. '|spent', name .. '|unsure', name .. '|reserved')
      local certain = (tonumber(sums[1]) or 0) + (tonumber(sums[2]) or 0) + bid.cost_microusd
      if certain > limit then
        block(NEVER, 'ceiling ' .. name)
      elseif certain + (tonumber(sums[3]) or 0) > limit then
        -- Only reservations are in the way: there may be room once those calls are booked.
        block(NOW + ms(ASK_AGAIN_S), 'ceiling ' .. name)
      end
    end
  end
end

-- Returns the buckets.
local function charge(load, use)
  local usage = load.usage
  for _, window in ipairs({usage.minute, usage.day}) do
    add(window.sum, use)
    add(window.bucket, use)
  end
  add(usage.charged, use)
  keep_usage(load.key, usage)
  redis.call('ZADD', load.calls_key, NOW, ask.lease_id)
  return {usage.minute.newest, usage.day.newest}
end

local function grant(bid, loads, probe)
  local use, buckets, cost = need_of(bid), {}, bid.cost_microusd or 0
  for i, load in ipairs(loads) do buckets[i] = charge(load, use) end
  local accounts = {}
  for i, ceiling in ipairs(ceilings(bid)) do
    accounts[i] = ceiling.account
    redis.call('HINCRBY', KEYS.money, ceiling.account .. '|reserved', cost)
  end
  local call = {endpoint = bid.endpoint_id, at = NOW, probe = probe, use = use, buckets = buckets,
    charged = loads[1].usage.charged}
  redis.call('HSET', KEYS.call_lease, 'call', cmsgpack.pack(call), 'cost', cost, 'accounts', cjson.encode(accounts))
  redis.call('ZADD', KEYS.call_lease_ends, ends_at, bid.endpoint_id .. ' ' .. ask.lease_id)
  return {'granted', bid.endpoint_id, NOW, math.min(probe, 1)}
end

if ask.fence then
  local token, state = unpack(redis.call('HMGET', KEYS[#KEYS - 1], 'token', 'state'))
  if tonumber(token or nil) ~= ask.fence.token or (state ~= 'leased' and state ~= 'calling') then return {'fenced'} end
end
local held, expired = unpack(redis.call('HMGET', KEYS.call_lease, 'call', 'expired'))
if expired then return {'fenced'} end
if held then -- a repeated admission, whose first reply was lost
  local call = cmsgpack.unpack(held)
  return {'granted', call.endpoint, call.at, math.min(call.probe, 1)}
end

local paused = ask.fence and ask.fence.batch and redis.call('HGET', KEYS[#KEYS - 2], 'state') == 'paused'
local refusal, at = {'full', NOW}, 6
local asked_first, soon = nil, false -- the loads of the first bid, and whether they have room soon
for _, bid in ipairs(ask.bids) do
  local loads = {}
  for i = 1, bid.shared_limits and 2 or 1 do
    loads[i] = load_of(KEYS[at], KEYS[at + 1])
    at = at + 2
  end
  local record, load = record_of(bid.endpoint_id), loads[1]
  local till, reason = nil, nil -- of the longest obstacle
  local function block(time, why)
    if till == nil or (till ~= NEVER and (time == NEVER or time > till)) then till, reason = time, why end
  end

  if paused then block(NEVER, 'the batch is paused') end
  local half_open, ramping = circuit(record, block)
  local slots = bid.limits.concurrency
  if ramping then slots = math.min(ramp_slots(record), slots or math.huge) end
  local pace = pace_of(record, ramping)
  local free, ready_at, fits, full = capacity(load, bid.limits, slots, pace, bid, block)
  if bid.shared_limits then
    local shared = bid.shared_limits
    if pace then pace.slots = nil end -- it is one endpoint that refused
    local also_free, also_at, also_fits, also_full = capacity(loads[2], shared, shared.concurrency, pace, bid, block)
    free, fits = math.min(free, also_free), math.min(fits, also_fits)
    if also_at > ready_at then ready_at, full = also_at, also_full end
  end
  money(bid, block)

  record[FREE], record[FREE_AT], record[READY_AT], record[SLOTS] = free, NOW, ready_at, bid.limits.concurrency or -1
  record[FULL] = full
  record[FITS] = ready_at > 0 and math.max(0, math.floor(fits)) or 0
  record[IN_FLIGHT] = load.in_flight
  if not till then
    if load.in_flight == 0 or NOW < record[OLDEST] then record[OLDEST] = NOW end
    local probe = 0
    if half_open then
      probe = record[PROBES] + 1
      record[PROBE], record[PROBES], record[PROBE_UNTIL] = probe, probe, ends_at
    end
    record[IN_FLIGHT] = load.in_flight + 1
    keep(bid.endpoint_id, record)
    if ask.fence then
      local job, story = KEYS[#KEYS - 1], KEYS[#KEYS]
      redis.call('HSET', job, 'state', 'calling')
      redis.call('RPUSH', story, '{"at":' .. NOW .. ',"event":"routed","to":' .. cjson.encode(bid.endpoint_id) .. '}')
    end
    for _, some in ipairs({asked_first or {}, loads}) do
      for _, one in ipairs(some) do stop_keeping(one) end
    end
    return grant(bid, loads, probe)
  end
  keep(bid.endpoint_id, record)
  if not asked_first then asked_first, soon = loads, till ~= NEVER and till <= NOW + ms(KEEP_IF_WITHIN_S) end
  refusal[#refusal + 1] = {bid.endpoint_id, till, reason}
end
if ask.keeps_room and ask.position and soon then
  for _, load in ipairs(asked_first) do keep_room(load, need_of(ask.bids[1])) end
end
return refusal
