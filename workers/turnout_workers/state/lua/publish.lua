-- Publish how many of a worker's jobs wait for which endpoint, and sweep out workers that fell silent.
--
-- KEYS  waiting
-- ARGV  worker, JSON of the counts by endpoint
local now = now_ms()
local known = redis.call('HGETALL', KEYS[1])
for i = 1, #known, 2 do
  if tonumber(string.match(known[i + 1], '^%d+')) + WAITING_MS <= now then redis.call('HDEL', KEYS[1], known[i]) end
end
redis.call('HSET', KEYS[1], ARGV[1], string.format('%d %s', now, ARGV[2]))
return redis.status_reply('OK')
