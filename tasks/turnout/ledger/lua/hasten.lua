#!lua flags=allow-oom
-- Let the first of every line of parked jobs look for room now.
-- KEYS  delayed
-- ARGV  at most so many lines
-- Returns how many
local lines = redis.call('ZRANGEBYSCORE', KEYS.delayed, '(' .. NOW, '+inf', 'LIMIT', 0, ARGV[1])
for _, line in ipairs(lines) do redis.call('ZADD', KEYS.delayed, NOW, line) end
return #lines
