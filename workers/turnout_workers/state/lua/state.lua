-- All that is known of the fleet, in one read.
--
-- KEYS  endpoints, waiting, hanging
-- Returns {now, what is known of each endpoint as JSON, the others as flat lists}
local packed, known = redis.call('HGETALL', KEYS.endpoints), {}
for i = 1, #packed, 2 do known[packed[i]] = cmsgpack.unpack(packed[i + 1]) end
return {NOW, cjson.encode(known), redis.call('HGETALL', KEYS.waiting), redis.call('HGETALL', KEYS.hanging)}
