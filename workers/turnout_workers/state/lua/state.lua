-- Everything observed of the endpoints, in one read.
--
-- KEYS  endpoints
-- Returns {now, the hash as a flat list}
return {NOW, redis.call('HGETALL', KEYS.endpoints)}
