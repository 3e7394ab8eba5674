#!lua flags=allow-oom
-- Give out turns that nobody has passed on: the jobs that had them were cancelled or expired, or there are more now.
-- Of very many tenants some are looked at, each time from another one on: a round must not hold Redis up.
-- KEYS  turns, in_line, turns_each, all_lanes
-- ARGV  at most so many
-- Returns the ids of those to be published
local ids, from = {}, '-'
local count = redis.call('ZCARD', KEYS.in_line)
local many = count > TENANTS
if many then from = '[' .. redis.call('ZRANGE', KEYS.in_line, NOW % count, NOW % count)[1] end
for _ = 1, TENANTS do
  local first = first_in(KEYS.in_line, from, '+') or many and first_in(KEYS.in_line, '-', '+')
  if not first or #ids >= tonumber(ARGV[1]) then break end
  local whose = whose_turn(first)
  for _ = 1, turns_left(whose) do
    ids[#ids + 1] = next_turn(whose)
  end
  from = select(2, under(whose))
end
return ids
