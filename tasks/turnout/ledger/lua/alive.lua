#!lua flags=allow-oom
-- Note that a worker lives, or, with no slots, that it has ended; those that have been silent for long are forgotten.
-- How many jobs of one tenant stand in a lane at a time depends on the slots of all that live.
-- KEYS  workers, turns_each, retention
-- ARGV  NAME, VERSION, SLOTS, silence (ms) after which it is forgotten, how long (ms) it keeps results
local name, version, slots, silence, kept = unpack(ARGV)
slots = tonumber(slots)
local all = slots
redis.call('ZREMRANGEBYSCORE', KEYS.workers, '-inf', NOW - silence)
for _, worker in ipairs(redis.call('ZRANGE', KEYS.workers, 0, -1)) do
  if string.sub(worker, 1, #name + 1) == name .. ' ' then
    redis.call('ZREM', KEYS.workers, worker)
  else
    all = all + string.match(worker, '%d+$')
  end
end
if slots > 0 then redis.call('ZADD', KEYS.workers, NOW, table.concat({name, version, slots}, ' ')) end
redis.call('PEXPIRE', KEYS.workers, silence)
redis.call('SET', KEYS.turns_each, math.max(TURNS, math.floor(all * TURNS_A_SLOT)), 'PX', silence)
redis.call('SET', KEYS.retention, kept)
return redis.status_reply('OK')
