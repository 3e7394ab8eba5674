#!lua flags=allow-oom
-- Give out turns that nobody has passed on: the jobs that had them were cancelled or expired, or there are more now.
-- KEYS  turns, in_line, turns_each, all_pending
-- ARGV  at most so many
-- Returns the ids of those to be published
local ids, from = {}, '-'
while #ids < tonumber(ARGV[1]) do
  local first = redis.call('ZRANGE', KEYS.in_line, from, '+', 'BYLEX', 'LIMIT', 0, 1)[1]
  if not first then break end
  local whose = string.match(first, '^%S+ %S* ')
  for _ = 1, turns_left(whose) do
    ids[#ids + 1] = next_turn(whose)
  end
  from = '(' .. whose .. ':'
end
return ids
