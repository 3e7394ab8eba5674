#!lua flags=allow-oom
-- Take a mutex, or prolong it. It expires some time after its owner stops prolonging it.
-- KEYS  mutex
-- ARGV  owner, time to live (ms)
-- Returns 1 if it is the owner's
local owner = redis.call('GET', KEYS.mutex)
if owner and owner ~= ARGV[1] then return 0 end
redis.call('SET', KEYS.mutex, ARGV[1], 'PX', ARGV[2])
return 1
