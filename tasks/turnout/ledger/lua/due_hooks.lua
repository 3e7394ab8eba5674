#!lua flags=no-writes,allow-oom
-- What is to be told now, of each webhook what is due longest.
-- KEYS  hooks
-- ARGV  at most so many of each
local found, from = {}, '-'
while true do
  local first = first_in(KEYS.hooks, from, '+')
  if not first then return found end
  local webhook = string.match(first, '^%S+')
  local due = {'[' .. webhook .. ' ', '(' .. webhook .. ' ' .. NOW + 1, 'BYLEX', 'LIMIT', 0, ARGV[1]}
  for _, hook in ipairs(redis.call('ZRANGE', KEYS.hooks, unpack(due))) do found[#found + 1] = hook end
  from = '[' .. webhook .. '!'
end
