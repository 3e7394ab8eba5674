-- All that is known of the fleet, in one read.
--
-- KEYS  fleet, waiting, hanging
-- Returns {now, each of them as a flat list}
return {now_ms(), redis.call('HGETALL', KEYS[1]), redis.call('HGETALL', KEYS[2]), redis.call('HGETALL', KEYS[3])}
