#!lua flags=allow-oom
-- Note that a worker lives or, with no slots, that it has ended. Workers that have been silent for long are forgotten.
-- How many jobs of a tenant are published in a lane at a time depends on the slots of all living workers. They are
-- summed when one comes, changes or goes, because in a large fleet that would cost too much at each sign of life.
-- KEYS  workers, turns_each, retention
-- ARGV  NAME, VERSION, SLOTS, silence (ms) after which it is forgotten, how long (ms) it keeps results
-- Returns how many live
local name, version, slots, silence, kept = unpack(ARGV)
slots = tonumber(slots)
local sign = table.concat({name, version, slots}, ' ')
local gone = redis.call('ZREMRANGEBYSCORE', KEYS.workers, '-inf', NOW - silence)
local known = slots > 0 and redis.call('ZSCORE', KEYS.workers, sign)
local summed = redis.call('PEXPIRE', KEYS.turns_each, silence) == 1
if not known or gone > 0 or not summed then
  local all = slots
  for _, worker in ipairs(redis.call('ZRANGE', KEYS.workers, 0, -1)) do
    if starts_with(worker, name .. ' ') then
      redis.call('ZREM', KEYS.workers, worker)
    else
      all = all + string.match(worker, '%d+$')
    end
  end
  redis.call('SET', KEYS.turns_each, math.max(TURNS, math.floor(all * TURNS_A_SLOT)), 'PX', silence)
end
if slots > 0 then redis.call('ZADD', KEYS.workers, NOW, sign) end
redis.call('PEXPIRE', KEYS.workers, silence)
redis.call('SET', KEYS.retention, kept)
return redis.call('ZCARD', KEYS.workers)
