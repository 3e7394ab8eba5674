#!lua
-- Take up to `room` messages from the lanes: from each its share, then the most urgent of the rest.
-- Refused while Redis is out of memory: a claim would fail, and the message would be lost.
-- KEYS  the lane queues (lists, oldest message at the right end), most urgent first; then, for each queue, its lists of
--       messages with a priority, as many for each
-- ARGV  room, a random number from 0 to 1, then a share (0 to 1) for each queue, then a maximum for each queue
-- Returns {{index of the queue, message}, ...}, in the order of urgency.

local total, drawn = tonumber(ARGV[1]), tonumber(ARGV[2])
local lanes, room = (#ARGV - 2) / 2, total
local taken = {}
for i = 1, lanes do taken[i] = {} end

-- Priorities are ignored: messages that have one join the back of their queue.
local steps = #KEYS / lanes - 1
for i = lanes + 1, #KEYS do
  local queue = KEYS[math.ceil((i - lanes) / steps)]
  for _, message in ipairs(redis.call('RPOP', KEYS[i], total) or {}) do redis.call('LPUSH', queue, message) end
end

local function take(i, count)
  count = math.min(count, room, ARGV[i + 2 + lanes] - #taken[i])
  if count < 1 then return end
  local popped = redis.call('RPOP', KEYS[i], count) or {}
  for _, message in ipairs(popped) do table.insert(taken[i], message) end
  room = room - #popped
end

-- Shares are laid end to end from a random offset and cut at whole numbers: exact on average, even for one message.
local upto = drawn
for i = 1, lanes do
  local from = upto
  upto = upto + total * ARGV[i + 2]
  take(i, math.floor(upto) - math.floor(from))
end
for i = 1, lanes do take(i, room) end

local reply = {}
for i = 1, lanes do
  for _, message in ipairs(taken[i]) do reply[#reply + 1] = {i, message} end
end
return reply
