#!lua flags=allow-oom
-- Let the first of every line of parked jobs look for room now, whatever one finds that has begun to look.
-- KEYS  delayed
-- ARGV  how the names of lines begin that wait for their time alone
for _, line in ipairs(redis.call('ZRANGEBYSCORE', KEYS.delayed, '(0', '+inf', 'LIMIT', 0, 10000)) do
  if not begins(line, ARGV[1]) then redis.call('ZADD', KEYS.delayed, 0, line) end
end
