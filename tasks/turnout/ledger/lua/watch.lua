#!lua flags=allow-oom
-- Ask to be told of a job on the caller's own channel: by its id when it settles, and by `+` and its id of each piece
-- of its answer.
-- KEYS  job
-- ARGV  channel, 1 to be told of pieces too
-- Returns its state now ('' if there is no such job); if it is settled, nobody will be told
local state, watchers, readers = record('state', 'watchers', 'readers')
if not state then return '' end

local function add(field, channels)
  channels = channels or ' '
  if string.find(channels, ' ' .. ARGV[1] .. ' ', 1, true) then return end
  redis.call('HSET', KEYS.job, field, channels .. ARGV[1] .. ' ')
end
if is_live(state) then
  add('watchers', watchers)
  if ARGV[2] == '1' then add('readers', readers) end
end
return state
