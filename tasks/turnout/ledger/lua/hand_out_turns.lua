#!lua flags=allow-oom
-- Hand out turns that came free without a claim: the jobs that had them were cancelled or expired, or more are allowed
-- now. If very many tenants wait, each round looks at some of them, starting with another one, so as not to block
-- Redis.
-- KEYS  turns, awaiting_turn, turns_each, all_lanes
-- ARGV  most turns to hand out
-- Returns the ids of the jobs to publish
local ids, from = {}, '-'
local count = redis.call('ZCARD', KEYS.awaiting_turn)
local many = count > TENANTS
if many then from = '[' .. redis.call('ZRANGE', KEYS.awaiting_turn, NOW % count, NOW % count)[1] end
for _ = 1, TENANTS do
  local first = first_in(KEYS.awaiting_turn, from, '+') or many and first_in(KEYS.awaiting_turn, '-', '+')
  if not first or #ids >= tonumber(ARGV[1]) then break end
  local owner = lane_and_tenant(first)
  for _ = 1, free_turns(owner) do
    ids[#ids + 1] = give_next_turn(owner)
  end
  from = select(2, lex_range(owner))
end
return ids
