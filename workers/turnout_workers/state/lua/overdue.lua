-- The overdue calls that workers have published lately.
--
-- KEYS  hanging
-- Returns JSON of the counts by endpoint, for each worker
local found, published = {}, redis.call('HGETALL', KEYS.hanging)
for i = 2, #published, 2 do
  local at, counts = string.match(published[i], '^(%d+) (.*)$')
  if at + ms(PUBLISHED_S) > NOW then found[#found + 1] = counts end
end
return found
