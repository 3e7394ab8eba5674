-- Publish how many calls of one worker are overdue. What dead workers left goes with the key, once no worker publishes:
-- to look for it here would cost more, the more workers there are.
--
-- KEYS  hanging
-- ARGV  worker, JSON of the counts by endpoint ('': none)
if ARGV[2] == '' then
  redis.call('HDEL', KEYS.hanging, ARGV[1])
else
  redis.call('HSET', KEYS.hanging, ARGV[1], string.format('%d %s', NOW, ARGV[2]))
  redis.call('PEXPIRE', KEYS.hanging, ms(PUBLISHED_S))
end
