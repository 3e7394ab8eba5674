#!lua flags=allow-oom
-- Let the head of every wait group look for room now, even if one has begun to look and finds none.
-- KEYS  delayed
-- ARGV  prefix of the groups that wait only for their time
for _, group in ipairs(redis.call('ZRANGEBYSCORE', KEYS.delayed, '(0', '+inf', 'LIMIT', 0, 10000)) do
  if not starts_with(group, ARGV[1]) then redis.call('ZADD', KEYS.delayed, 0, group) end
end
