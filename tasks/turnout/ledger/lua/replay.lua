#!lua
-- Run a settled job that did not succeed again: from the start, accepted again and so behind what waits, without its
-- old deadline, and in its tenant's turn. Its story goes on, and keeps when it was first accepted and how it ended
-- before.
-- KEYS  job, failed, counts, story, result, stream, batch, turns, awaiting_turn, turns_each, all_lanes
-- ARGV  id
-- Returns 1, or 0 if it is gone, live or succeeded
local version, state, result = job_fields('v', 'state', 'result')
if version ~= VERSION or not (state == 'failed' or state == 'expired' or state == 'cancelled') then return 0 end

redis.call('HSET', KEYS.job, 'state', 'queued', 'accepted_ms', NOW, 'queued_ms', NOW, 'crashes', 0, 'requeues', 0,
  'deadline_ms', 0, 'progress', '')
redis.call('HDEL', KEYS.job, 'result', 'settled_ms', 'settled_token', 'unheard', 'hook_tries')
redis.call('PERSIST', KEYS.job)
redis.call('PERSIST', KEYS.story)
redis.call('ZREM', KEYS.failed, ARGV[1])
redis.call('HINCRBY', KEYS.counts, state, -1)
if redis.call('EXISTS', KEYS.batch) == 1 then redis.call('HINCRBY', KEYS.batch, state, -1) end
redis.call('DEL', KEYS.result, KEYS.stream)
if take_or_await_turn(ARGV[1]) then publish(ARGV[1]) end
add_event('"event":"replayed","previous":' .. result)
return 1
