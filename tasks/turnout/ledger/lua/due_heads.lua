#!lua flags=no-writes,allow-oom
-- The head of each wait group whose time has come; the group longest due comes first.
-- KEYS  delayed, parked
-- ARGV  most groups
local ids = {}
for _, group in ipairs(redis.call('ZRANGEBYSCORE', KEYS.delayed, '-inf', NOW, 'LIMIT', 0, ARGV[1])) do
  ids[#ids + 1] = string.match(head_of(group), '^%S+ %d+ (.*)$')
end
return ids
