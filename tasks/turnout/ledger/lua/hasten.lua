#!lua flags=allow-oom
-- Let the first of every line of parked jobs look for room now, whatever one finds that has begun to look.
-- KEYS  delayed
-- ARGV  at most so many lines, how the names of those begin that wait for their time alone
-- Returns how many
local lines = redis.call('ZRANGEBYSCORE', KEYS.delayed, '(0', '+inf', 'LIMIT', 0, ARGV[1])
local hastened = 0
for _, line in ipairs(lines) do
  if string.sub(line, 1, #ARGV[2]) ~= ARGV[2] then
    redis.call('ZADD', KEYS.delayed, 0, line)
    hastened = hastened + 1
  end
end
return hastened
