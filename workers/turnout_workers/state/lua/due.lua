-- The leases that have expired, oldest first, so that `expire` can be told their keys.
--
-- KEYS  expiry
-- ARGV  how many at most
-- Returns `ENDPOINT LEASE` of each
return redis.call('ZRANGEBYSCORE', KEYS.expiry, '-inf', NOW, 'LIMIT', 0, ARGV[1])
