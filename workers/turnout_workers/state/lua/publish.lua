-- Publish what one worker counts by endpoint, and sweep out workers that fell silent.
--
-- KEYS  waiting, hanging
-- ARGV  worker, JSON of the counts for each key
for i, key in ipairs(KEYS) do
  local known = redis.call('HGETALL', key)
  for j = 1, #known, 2 do
    if tonumber(string.match(known[j + 1], '^%d+')) + PUBLISHED_MS <= NOW then redis.call('HDEL', key, known[j]) end
  end
  redis.call('HSET', key, ARGV[1], string.format('%d %s', NOW, ARGV[i + 1]))
end
return redis.status_reply('OK')
