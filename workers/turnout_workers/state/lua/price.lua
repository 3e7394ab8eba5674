-- Set the dual prices of endpoints' scarce capacity.
--
-- KEYS  fleet
-- ARGV  endpoint, price …
for i = 1, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i] .. '|shadow_price', ARGV[i + 1]) end
return redis.status_reply('OK')
