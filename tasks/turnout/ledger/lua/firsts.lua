#!lua flags=no-writes,allow-oom
-- Of each line of parked jobs whose time has come, the first; the line longest due comes first.
-- KEYS  delayed, parked
-- ARGV  at most so many
local ids = {}
for _, line in ipairs(redis.call('ZRANGEBYSCORE', KEYS.delayed, '-inf', NOW, 'LIMIT', 0, ARGV[1])) do
  ids[#ids + 1] = string.match(first_of(line), '^%S+ %d+ (.*)$')
end
return ids
