-- All that is known of the endpoints, in one read.
--
-- KEYS  endpoints
-- Returns {now, it as a flat list}
return {NOW, redis.call('HGETALL', KEYS.endpoints)}
