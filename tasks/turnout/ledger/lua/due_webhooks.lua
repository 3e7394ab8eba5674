#!lua flags=no-writes,allow-oom
-- The webhook deliveries that are due now, for each webhook those due longest.
-- KEYS  webhooks
-- ARGV  most of each webhook
local found, from = {}, '-'
while true do
  local first = first_in(KEYS.webhooks, from, '+')
  if not first then return found end
  local webhook = string.match(first, '^%S+')
  local due = {'[' .. webhook .. ' ', '(' .. webhook .. ' ' .. NOW + 1, 'BYLEX', 'LIMIT', 0, ARGV[1]}
  for _, delivery in ipairs(redis.call('ZRANGE', KEYS.webhooks, unpack(due))) do found[#found + 1] = delivery end
  from = '[' .. webhook .. '!'
end
