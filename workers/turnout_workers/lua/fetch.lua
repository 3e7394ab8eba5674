-- Take up to ROOM messages from the lanes, most urgent first, but of each lane at least its share.
-- KEYS  the lane queues (lists, oldest message at the right end), most urgent first
-- ARGV  room, then one share (0 to 1) for each key
-- Returns {{index of the queue, message}, ...}, in the order of urgency.

local room = tonumber(ARGV[1])
local taken = {}
for i = 1, #KEYS do taken[i] = {} end

local function take(i, count)
  if count < 1 then return end
  local popped = redis.call('RPOP', KEYS[i], count) or {}
  for _, message in ipairs(popped) do table.insert(taken[i], message) end
  room = room - #popped
end

local total = room
for i = 1, #KEYS do take(i, math.min(room, math.floor(total * tonumber(ARGV[i + 1])))) end
for i = 1, #KEYS do take(i, room) end

local reply = {}
for i = 1, #KEYS do
  for _, message in ipairs(taken[i]) do reply[#reply + 1] = {i, message} end
end
return reply
