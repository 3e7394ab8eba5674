#!lua flags=allow-oom
-- Delete settled jobs with everything that belongs to them. Live ones stay.
-- KEYS  failed, then job, story, result and stream of each
-- ARGV  their ids
-- Returns how many were deleted
local count = 0
for i, id in ipairs(ARGV) do
  local job = 4 * i - 2
  local state = redis.call('HGET', KEYS[job], 'state')
  if state and not is_live(state) then
    redis.call('UNLINK', KEYS[job], KEYS[job + 1], KEYS[job + 2], KEYS[job + 3])
    redis.call('ZREM', KEYS.failed, id)
    count = count + 1
  end
end
return count
