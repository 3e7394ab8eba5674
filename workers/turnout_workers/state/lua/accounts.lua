-- Read accounts.
--
-- KEYS  money
-- ARGV  their names
-- Returns {spent, reserved, unsure, duplicate} of each
local answer = {}
for i, name in ipairs(ARGV) do
  answer[i] = redis.call('HMGET', KEYS[1], name .. '|spent', name .. '|reserved', name .. '|unsure',
    name .. '|duplicate')
end
return answer
