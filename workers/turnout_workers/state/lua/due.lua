-- The leases that have expired, oldest first, so that `expire` can be told their keys.
--
-- KEYS  expiry
-- ARGV  how many at most
-- Returns `ENDPOINT LEASE` of each
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now_ms(), 'LIMIT', 0, ARGV[1])
