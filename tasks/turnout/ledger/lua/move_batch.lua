#!lua
-- Put a detached batch into another state, if it is in one from which it may come.
-- KEYS  batch
-- ARGV  those states, each between spaces, then fields of its record with their values: `state`, perhaps others
-- Returns the state that it was in, '' if there is no such batch
local state = redis.call('HGET', KEYS.batch, 'state') or ''
if string.find(ARGV[1], ' ' .. state .. ' ', 1, true) then redis.call('HSET', KEYS.batch, unpack(ARGV, 2)) end
return state
