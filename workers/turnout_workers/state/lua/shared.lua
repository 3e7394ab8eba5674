-- Prepended to every script of the fleet's state, after the clock and the constants of redis_store.py.
local NOW = now_ms()

local function ms(seconds) return math.floor(seconds * 1000 + 0.5) end

-- The record of an endpoint: a table of numbers such as `record[EJECTIONS]`, see record.py.
local function record_of(endpoint)
  local packed = redis.call('HGET', KEYS.endpoints, endpoint)
  return packed and {struct.unpack(LAYOUT, packed)} or fresh()
end

local function keep(endpoint, record)
  redis.call('HSET', KEYS.endpoints, endpoint, struct.pack(LAYOUT, unpack(record)))
end

-- Update how many calls are in flight, and when the oldest began.
local function count_calls(record, calls_key)
  record[IN_FLIGHT] = redis.call('ZCARD', calls_key)
  record[OLDEST] = tonumber(redis.call('ZRANGE', calls_key, 0, 0, 'WITHSCORES')[2] or 0)
end

-- As `windows.squeezed`: the pace, as a share of its limits.
local function share_of(record)
  local since_s = (NOW - record[COOLDOWN_UNTIL]) / 1000
  return math.min(1, record[SHARE] + SQUEEZE_REGROWTH * math.max(0, since_s - SQUEEZE_HOLD_S))
end

-- Change the columns of an account, unless it was forgotten while its calls were in flight.
local function book(account, changes)
  if not redis.call('HGET', KEYS.money, account .. '|reserved') then return end
  for column, amount in pairs(changes) do
    if amount ~= 0 then redis.call('HINCRBY', KEYS.money, account .. '|' .. column, amount) end
  end
end

-- Values are {requests, input tokens, output tokens}.
local function add(values, others, sign)
  for i = 1, 3 do values[i] = values[i] + (sign or 1) * others[i] end
end

-- What the calls to an endpoint or a whole account took. `charged`: all calls ever made, as charged at admission.
-- `minute`, `day`: the number of the window's newest bucket, its values, and the sum of all buckets; the older buckets
-- are fields of the same hash. `headers`: what the provider announced, by limit. `first`: the first job that waits.
local function usage_of(key)
  local packed = redis.call('HGET', key, 'now')
  if packed then return cmsgpack.unpack(packed) end
  local function window() return {newest = 0, bucket = {0, 0, 0}, sum = {0, 0, 0}} end
  return {minute = window(), day = window(), charged = {0, 0, 0}, headers = {}}
end

local function keep_usage(key, usage) redis.call('HSET', key, 'now', cmsgpack.pack(usage)) end

-- The values that a limit counts, added up. `kind`: see KINDS in redis_store.py.
local function total(values, kind)
  local sum = 0
  for i = 3, #kind do sum = sum + values[kind[i]] end
  return sum
end
