-- All that is known of the fleet, in one read.
--
-- KEYS  fleet, overdue, waiting
-- Returns {now, fleet as a flat list, {endpoint, overdue calls} …, waiting as a flat list}
local now, counts, overdue = now_ms(), {}, {}
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now)) do
  local endpoint = string.match(member, '^%S+')
  counts[endpoint] = (counts[endpoint] or 0) + 1
end
for endpoint, count in pairs(counts) do overdue[#overdue + 1] = {endpoint, count} end
return {now, redis.call('HGETALL', KEYS[1]), overdue, redis.call('HGETALL', KEYS[3])}
