#!lua
-- Note that the first chunk of a batch's input has been fed, and drop it: only once, even if two workers have fed it.
-- KEYS  batch, batch_input
-- ARGV  the chunk's number, how many jobs it had, how many of them were not accepted because their deadline had passed
-- Returns 1, or 0 if it was noted before
if redis.call('HGET', KEYS.batch, 'next') ~= ARGV[1] then return 0 end
redis.call('LPOP', KEYS.batch_input)
redis.call('HINCRBY', KEYS.batch, 'next', 1)
redis.call('HINCRBY', KEYS.batch, 'fed', ARGV[2])
if ARGV[3] ~= '0' then redis.call('HINCRBY', KEYS.batch, 'expired', ARGV[3]) end
return 1
