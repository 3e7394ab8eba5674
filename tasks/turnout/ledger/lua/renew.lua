#!lua flags=allow-oom
-- Prolong the leases of one worker's jobs.
-- KEYS  job_leases, then one job for each pair of arguments
-- ARGV  time to live (ms), then id and token of each job
-- Returns 1 for each job that is still this worker's, else 0
local ends = NOW + ARGV[1]
local reply = {}
for i = 2, #KEYS do
  local id, token = ARGV[2 * i - 2], ARGV[2 * i - 1]
  local state, current = unpack(redis.call('HMGET', KEYS[i], 'state', 'token'))
  local ours = is_held(state) and current == token
  if ours then redis.call('ZADD', KEYS.job_leases, ends, id) end
  reply[i - 1] = ours and 1 or 0
end
return reply
