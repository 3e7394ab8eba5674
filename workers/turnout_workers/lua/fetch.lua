#!lua
-- Take up to ROOM messages from the lanes: of each its share while it has some, of what is left the most urgent.
-- Not while Redis is out of memory: no claim would be taken, and the message would be lost.
-- KEYS  the lane queues (lists, oldest message at the right end), most urgent first, then of each its lists of messages
--       that have a priority, of all equally many
-- ARGV  room, a random number from 0 to 1, then a share (0 to 1) for each queue, then how many of it at most
-- Returns {{index of the queue, message}, ...}, in the order of urgency.

local total, drawn = tonumber(ARGV[1]), tonumber(ARGV[2])
local lanes, room = (#ARGV - 2) / 2, total
local taken = {}
for i = 1, lanes do taken[i] = {} end

-- Nobody's priority is looked at: what has one joins its queue at the back.
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

-- The shares end to end, cut at whole numbers after a random offset: on average exact, even of one message.
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
