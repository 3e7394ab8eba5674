#!lua flags=allow-oom
-- Take a mutex, or keep it for longer. It ends by itself some time after its owner has.
-- KEYS  mutex
-- ARGV  owner, for (ms)
-- Returns 1 if it is the owner's
local owner = redis.call('GET', KEYS.mutex)
if owner and owner ~= ARGV[1] then return 0 end
redis.call('SET', KEYS.mutex, ARGV[1], 'PX', ARGV[2])
return 1
