#!lua flags=allow-oom
-- Prolong the leases of one worker's jobs.
-- KEYS  leases, then one job for each pair of arguments
-- ARGV  time to live (ms), then id and token of each job
-- Returns 1 for each job that is still this worker's, else 0
local ends = now_ms() + ARGV[1]
local reply = {}
for i = 2, #KEYS do
  local id, token = ARGV[2 * i - 2], ARGV[2 * i - 1]
  local held = redis.call('HMGET', KEYS[i], 'state', 'token')
  local ours = held[2] == token and (held[1] == 'leased' or held[1] == 'calling')
  -- XX: what the sweeper has taken must not come back
  if ours then redis.call('ZADD', KEYS[1], 'XX', ends, id) end
  reply[i - 1] = ours and redis.call('ZSCORE', KEYS[1], id) and 1 or 0
end
return reply
