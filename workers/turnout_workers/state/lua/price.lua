-- Set the dual prices of endpoints' scarce capacity.
--
-- KEYS  endpoints
-- ARGV  endpoint, price …
for i = 1, #ARGV, 2 do
  local known = known_of(ARGV[i])
  known[SHADOW_PRICE] = tonumber(ARGV[i + 1])
  keep(ARGV[i], known)
end
return redis.status_reply('OK')
