#!lua
-- Ask to be told when a job settles, by a message on the caller's own channel.
-- KEYS  job
-- ARGV  channel
-- Returns its state now ('' if there is no such job); if it is settled, nobody will be told
local state = redis.call('HGET', KEYS[1], 'state')
if not state then return '' end
if state == 'queued' or state == 'delayed' or state == 'leased' or state == 'calling' then
  local watchers = redis.call('HGET', KEYS[1], 'watchers') or ''
  if not string.find(watchers, ARGV[1], 1, true) then
    redis.call('HSET', KEYS[1], 'watchers', watchers .. ' ' .. ARGV[1])
  end
end
return state
