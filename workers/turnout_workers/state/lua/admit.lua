-- Lease the first bid that has room, or say what stands in each one's way, and until when.
--
-- KEYS  fleet, money, expiry, lease, ceilings; then window and calls of each bid's endpoint, and of its account
--       too if it has shared limits; then, if the admission is fenced, the job's record and story
-- ARGV  the ask as JSON: id, ttl (ms), headroom, token (text; absent: not fenced), accounts, and bids of
--       endpoint, input, output, cost, probe_allowed, limits, shared (limits), accounts;
--       an account is [name, limit], -1 for none
-- Returns {'granted', endpoint, at, probe} | {'fenced'} | {'full', now, {endpoint, until, reason} …};
--       `until` is -1 where waiting doesn't help
local FLEET, MONEY, EXPIRY, LEASE, CEILINGS = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local NEVER = -1
local ask = cjson.decode(ARGV[1])
local now = now_ms()

local function add(values, others, sign)
  for i = 2, 4 do values[i] = values[i] + sign * others[i] end
end

-- A window is {newest bucket, requests, input, output}; buckets that have left it are taken off its sum.
local function roll(key, name, stored, size)
  local window = numbers(stored)
  local newest = math.max(window[1], math.floor(now / size.width))
  local first, last = window[1] - size.span, math.min(window[1], newest - size.span - 1)
  if window[1] > 0 and first <= last then
    local fields = {}
    for bucket = first, last do fields[#fields + 1] = name .. bucket end
    for _, gone in ipairs(redis.call('HMGET', key, unpack(fields))) do
      if gone then add(window, numbers(gone), -1) end
    end
    redis.call('HDEL', key, unpack(fields))
    window[1] = newest
    redis.call('HSET', key, name, text(window))
  end
  window[1] = newest
  return window
end

-- Room within the limit; or alone in the window, when a reserve or a squeeze leaves less than one large job.
local function fits(used, amount, full, limit)
  return used + amount <= limit or (used == 0 and amount <= full)
end

local function room_at(key, name, window, size, counters, amount, full, limit)
  local used, fields = total(window, counters), {}
  if fits(used, amount, full, limit) then return 0 end
  local first = window[1] - size.span
  for bucket = first, window[1] do fields[#fields + 1] = name .. bucket end
  for i, bucket in ipairs(redis.call('HMGET', key, unpack(fields))) do
    if bucket then
      used = used - total(numbers(bucket), counters)
      if fits(used, amount, full, limit) then return (first + i + size.span) * size.width end
    end
  end
  return NEVER
end

local function circuit(health, bid, block)
  local ramping = false
  if health.isolated then
    block(NEVER, 'isolated')
  elseif health.disabled then
    block(NEVER, 'disabled')
  elseif health.open_until > now then
    block(health.open_until, 'open')
  elseif health.open_until > 0 and health.recovered_at < health.open_until then
    health.half_open = true
    if health.probe_until > now then
      block(now + ASK_AGAIN_MS, 'probing')
    elseif not bid.probe_allowed then
      block(now + ASK_AGAIN_MS, 'probe not allowed')
    end
  else
    ramping = health.recovered_at > 0 and now - health.recovered_at < RAMP_S * 1000
  end
  if health.blocked_until > now then block(health.blocked_until, 'cooldown') end
  return ramping
end

local function read(window_key, calls_key)
  local stored = redis.call('HMGET', window_key, 'minute', 'day', 'charged', 'headers')
  local load = {
    key = window_key, calls_key = calls_key, minute = roll(window_key, 'minute', stored[1], MINUTE),
    day = roll(window_key, 'day', stored[2], DAY), charged = numbers(stored[3]),
    headers = stored[4] and cjson.decode(stored[4]) or {}, in_flight = redis.call('ZCARD', calls_key),
  }
  local buckets = redis.call('HMGET', window_key, 'minute' .. load.minute[1], 'day' .. load.day[1])
  load.this_second, load.this_quarter = numbers(buckets[1]), numbers(buckets[2])
  return load
end

-- As `health.ramp_room`. Blocks where this second has had its calls; returns how many may be in flight.
local function ramped(limits, health, load, block)
  local elapsed, slots = (now - health.recovered_at) / 1000, limits.concurrency
  local window = RAMP_WINDOW + health.proven
  local share = RAMP_FROM + (1 - RAMP_FROM) * elapsed / RAMP_S
  if limits.requests_per_minute then
    local fair, second = limits.requests_per_minute / 60, load.minute[1]
    local most = RAMP_EXCESS * fair
    local per_second = math.max(1, math.floor((second + 1) * most) - math.floor(second * most))
    if load.in_flight >= window then per_second = math.min(per_second, math.max(1, math.floor(share * fair))) end
    if load.this_second[2] >= math.max(1, math.floor(per_second * ask.headroom)) then
      block((second + 1) * MINUTE.width, 'ramping')
    end
  end
  if slots then return math.min(slots, math.max(1, math.floor(share * slots), window)) end
  if not limits.requests_per_minute then return math.max(2 ^ math.floor(elapsed), window) end
end

-- Blocks where a limit is full. Returns the free share of the scarcest, and when the scarcest has room again.
local function capacity(load, limits, slots, squeezed, bid, block)
  if slots and load.in_flight >= math.min(slots, math.max(1, math.floor(slots * ask.headroom))) then
    block(now + ASK_AGAIN_MS, 'concurrency')
  end
  local free, ready_at = 1, 0
  for _, kind in ipairs(KINDS) do
    local name, counters = kind[1], kind[3]
    local amount = total({0, 1, bid.input, bid.output}, counters)
    local told = load.headers[name] or {}
    if amount > 0 then
      if told.total and told['until'] > now and total(load.charged, counters) + amount > told.total then
        block(told['until'], name)
        ready_at = math.max(ready_at, told['until'])
      end
      local full = limits[name]
      if told.limit and (not full or told.limit < full) then full = told.limit end
      if full then
        local size = kind[2] == 'minute' and MINUTE or DAY
        local limit, window = full * squeezed, load[kind[2]]
        free = math.min(free, math.max(0, 1 - total(window, counters) / math.max(limit, 1)))
        local at = room_at(load.key, kind[2], window, size, counters, amount, full, limit * ask.headroom)
        if at ~= 0 then
          block(at, name)
          at = room_at(load.key, kind[2], window, size, counters, amount, full, limit)
          ready_at = math.max(ready_at, at)
        end
      end
    end
  end
  return free, ready_at
end

local function money(bid, block)
  for _, accounts in ipairs({ask.accounts, bid.accounts}) do
    for _, account in ipairs(accounts) do
      local name, limit = account[1], account[2]
      -- A batch has the ceiling that its producer has set. Other accounts are none of a producer's business.
      if limit < 0 and string.sub(name, 1, 6) == 'batch:' then
        limit = tonumber(redis.call('HGET', CEILINGS, name)) or limit
      end
      if limit >= 0 then
        local sums = redis.call('HMGET', MONEY, name .. '|spent', name .. '|unsure', name .. '|reserved')
        local certain = (tonumber(sums[1]) or 0) + (tonumber(sums[2]) or 0) + bid.cost
        if certain > limit then
          block(NEVER, 'ceiling ' .. name)
        elseif certain + (tonumber(sums[3]) or 0) > limit then
          -- Only reservations are in the way: there may be room again once those calls are paid.
          block(now + ASK_AGAIN_MS, 'ceiling ' .. name)
        end
      end
    end
  end
end

local function charge(load, use)
  for _, sum in ipairs({load.minute, load.day, load.charged, load.this_second, load.this_quarter}) do
    add(sum, use, 1)
  end
  redis.call('HSET', load.key, 'minute', text(load.minute), 'day', text(load.day), 'charged', text(load.charged),
    'minute' .. load.minute[1], text(load.this_second), 'day' .. load.day[1], text(load.this_quarter))
  redis.call('ZADD', load.calls_key, now, ask.id)
end

local function grant(bid, health, load, shared)
  local probe = health.half_open and 1 or 0
  local use = {0, 1, bid.input, bid.output}
  charge(load, use)
  if shared then charge(shared, use) end
  local accounts = {}
  for _, list in ipairs({ask.accounts, bid.accounts}) do
    for _, account in ipairs(list) do
      accounts[#accounts + 1] = account[1]
      redis.call('HINCRBY', MONEY, account[1] .. '|reserved', bid.cost)
    end
  end
  redis.call('HSET', LEASE, 'endpoint', bid.endpoint, 'at', now, 'use', text(use), 'second', load.minute[1],
    'quarter', load.day[1], 'charged', text(load.charged), 'cost', bid.cost,
    'accounts', #accounts > 0 and cjson.encode(accounts) or '[]', 'probe', probe, 'shared', shared and 1 or 0)
  redis.call('ZADD', EXPIRY, now + ask.ttl, bid.endpoint .. ' ' .. ask.id)
  if load.in_flight == 0 then redis.call('HSET', FLEET, bid.endpoint .. '|oldest', now) end
  if probe == 1 then
    redis.call('HSET', FLEET, bid.endpoint .. '|probe', ask.id, bid.endpoint .. '|probe_until', now + ask.ttl)
  end
  if ask.token then
    redis.call('HSET', KEYS[#KEYS - 1], 'state', 'calling')
    redis.call('HINCRBY', KEYS[#KEYS - 1], 'calls', 1)
    redis.call('RPUSH', KEYS[#KEYS], '{"at":' .. now .. ',"event":"routed","to":' .. cjson.encode(bid.endpoint) .. '}')
  end
  return {'granted', bid.endpoint, now, probe}
end

if ask.token then
  local job = redis.call('HMGET', KEYS[#KEYS - 1], 'token', 'state')
  if job[1] ~= ask.token or (job[2] ~= 'leased' and job[2] ~= 'calling') then return {'fenced'} end
end
local held = redis.call('HMGET', LEASE, 'endpoint', 'at', 'probe', 'expired')
if held[1] then -- a repeated admission, its first answer was lost
  if held[4] then return {'fenced'} end
  return {'granted', held[1], tonumber(held[2]), tonumber(held[3])}
end

local refusal, at = {'full', now}, 6
for _, bid in ipairs(ask.bids) do
  local load, shared = read(KEYS[at], KEYS[at + 1]), nil
  at = at + 2
  if bid.shared then
    shared = read(KEYS[at], KEYS[at + 1])
    at = at + 2
  end
  local e = bid.endpoint .. '|'
  local known = redis.call('HMGET', FLEET, e .. 'open_until', e .. 'recovered_at', e .. 'blocked_until',
    e .. 'probe_until', e .. 'share', e .. 'proven', e .. 'disabled', e .. 'isolated')
  local health = {
    open_until = tonumber(known[1]) or 0, recovered_at = tonumber(known[2]) or 0,
    blocked_until = tonumber(known[3]) or 0, probe_until = tonumber(known[4]) or 0,
    share = tonumber(known[5]) or 1, proven = tonumber(known[6]) or 0, disabled = known[7], isolated = known[8],
  }

  local till, reason = nil, nil -- of what stands longest in the way
  local function block(time, why)
    if till == nil or (till ~= NEVER and (time == NEVER or time > till)) then till, reason = time, why end
  end
  local slots = bid.limits.concurrency
  if circuit(health, bid, block) then slots = ramped(bid.limits, health, load, block) end
  local squeezed = math.min(
    1, health.share + SQUEEZE_REGROWTH * math.max(0, (now - health.blocked_until) / 1000 - SQUEEZE_HOLD_S))
  local free, ready_at = capacity(load, bid.limits, slots, squeezed, bid, block)
  if shared then
    local also_free, also_at = capacity(shared, bid.shared, bid.shared.concurrency, 1, bid, block)
    free, ready_at = math.min(free, also_free), math.max(ready_at, also_at)
  end
  money(bid, block)
  redis.call('HSET', FLEET, e .. 'free', free, e .. 'free_at', now, e .. 'ready_at', ready_at,
    e .. 'slots', bid.limits.concurrency or -1, e .. 'in_flight', load.in_flight + (till and 0 or 1))
  if not till then return grant(bid, health, load, shared) end
  refusal[#refusal + 1] = {bid.endpoint, till, reason}
end
return refusal
