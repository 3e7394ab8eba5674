-- All that is known of the fleet, in one read.
--
-- KEYS  endpoints, hanging
-- Returns {now, each of them as a flat list}
return {NOW, redis.call('HGETALL', KEYS.endpoints), redis.call('HGETALL', KEYS.hanging)}
