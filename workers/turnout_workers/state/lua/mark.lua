#!lua flags=allow-oom
-- What isn't decided by a circuit: a cooldown that the provider asked for, a bad key, an operator's word.
--
-- KEYS  endpoints
-- ARGV  blocked | disabled | isolated | restored, reason, for (ms), then the endpoints
local what, reason = ARGV[1], ARGV[2]

local function mark(endpoint, known)
  local text = ' reason'
  if what == 'blocked' then
    if known[BLOCKED_UNTIL] <= NOW then -- once a cooldown, however many calls ran into it
      known[SHARE] = math.max(SQUEEZE_LEAST, share_of(known) * SQUEEZE)
    end
    known[BLOCKED_UNTIL] = math.max(known[BLOCKED_UNTIL], NOW + ARGV[3])
  elseif what == 'disabled' then
    known[DISABLED], text = 1, ' disabled'
  elseif what == 'isolated' then
    known[ISOLATED] = 1
  else
    local first = fresh()
    for _, field in ipairs(RESTORED) do known[field] = first[field] end
  end
  keep(endpoint, known)
  redis.call('HSET', KEYS.endpoints, endpoint .. text, reason)
end

for i = 4, #ARGV do
  local known = known_of(ARGV[i])
  if what ~= 'blocked' or known[ISOLATED] == 0 then mark(ARGV[i], known) end -- else an operator's word stands
end
return redis.status_reply('OK')
