#!lua flags=allow-oom
-- Give out turns that nobody has passed on, because the jobs that had them were cancelled or expired.
-- KEYS  turns, line, pending of each lane
-- ARGV  at most so many
-- Returns the ids of those to be published
local ids, from, pendings = {}, '-', {unpack(KEYS, 3)}
while #ids < tonumber(ARGV[1]) do
  local first = redis.call('ZRANGE', KEYS[2], from, '+', 'BYLEX', 'LIMIT', 0, 1)[1]
  if not first then break end
  local whose = string.match(first, '^%S+ %S* ')
  for _ = redis.call('ZLEXCOUNT', KEYS[1], '[' .. whose, '(' .. whose .. ':'), TURNS - 1 do
    ids[#ids + 1] = next_turn(whose, KEYS[1], KEYS[2], pendings)
  end
  from = '(' .. whose .. ':'
end
return ids
