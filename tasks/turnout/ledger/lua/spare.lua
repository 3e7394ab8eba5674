#!lua flags=allow-oom
-- Give out turns that nobody has passed on: the jobs that had them were cancelled or expired, or there are more now.
-- Of very many tenants some are looked at, each time from another one on: a round must not hold Redis up.
-- KEYS  turns, awaiting_turn, turns_each, all_lanes
-- ARGV  at most so many
-- Returns the ids of those to be published
local ids, from = {}, '-'
local count = redis.call('ZCARD', KEYS.awaiting_turn)
local many = count > TENANTS
if many then from = '[' .. redis.call('ZRANGE', KEYS.awaiting_turn, NOW % count, NOW % count)[1] end
for _ = 1, TENANTS do
  local first = first_in(KEYS.awaiting_turn, from, '+') or many and first_in(KEYS.awaiting_turn, '-', '+')
  if not first or #ids >= tonumber(ARGV[1]) then break end
  local whose = whose_turn(first)
  for _ = 1, turns_left(whose) do
    ids[#ids + 1] = next_turn(whose)
  end
  from = select(2, under(whose))
end
return ids
