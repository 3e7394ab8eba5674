-- Publish which calls of one worker are overdue, and sweep out workers that fell silent.
--
-- KEYS  hanging
-- ARGV  worker, JSON of the counts by endpoint
local known = redis.call('HGETALL', KEYS.hanging)
for i = 1, #known, 2 do
  if tonumber(string.match(known[i + 1], '^%d+')) + PUBLISHED_MS <= NOW then
    redis.call('HDEL', KEYS.hanging, known[i])
  end
end
redis.call('HSET', KEYS.hanging, ARGV[1], string.format('%d %s', NOW, ARGV[2]))
return redis.status_reply('OK')
