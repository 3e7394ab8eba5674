#!lua flags=no-writes,allow-oom
-- Of each line of parked jobs whose time has come, the first; the line longest due comes first.
-- KEYS  delayed, parked
-- ARGV  at most so many
local ids = {}
for _, line in ipairs(redis.call('ZRANGEBYSCORE', KEYS.delayed, '-inf', NOW, 'LIMIT', 0, ARGV[1])) do
  local spot = redis.call('ZRANGE', KEYS.parked, '[' .. line .. ' ', '(' .. line .. '!', 'BYLEX', 'LIMIT', 0, 1)[1]
  ids[#ids + 1] = string.match(spot, '^%S+ %d+ (.*)$')
end
return ids
