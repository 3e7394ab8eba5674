#!lua flags=allow-oom
-- Ask for notices of a job on the caller's own channel: its id when it settles, and `+` and its id for each piece of
-- its answer.
-- KEYS  job
-- ARGV  channel, 1 for notices of pieces too
-- Returns its current state ('' if there is no such job); a settled job sends no notice
local state, watchers, readers = job_fields('state', 'watchers', 'readers')
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
