#!lua
-- Ask to be told when a job settles, by a message on the caller's own channel.
-- KEYS  job
-- ARGV  channel
-- Returns its state now ('' if there is no such job); if it is settled, nobody will be told
local state, watchers = unpack(redis.call('HMGET', KEYS[1], 'state', 'watchers'))
if not state then return '' end
watchers = watchers or ' '
if (is_waiting(state) or is_held(state)) and not string.find(watchers, ' ' .. ARGV[1] .. ' ', 1, true) then
  redis.call('HSET', KEYS[1], 'watchers', watchers .. ARGV[1] .. ' ')
end
return state
