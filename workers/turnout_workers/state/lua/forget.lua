-- Drop accounts.
--
-- KEYS  money
-- ARGV  their names
for _, name in ipairs(ARGV) do
  redis.call('HDEL', KEYS[1], name .. '|spent', name .. '|reserved', name .. '|unsure', name .. '|duplicate',
    name .. '|limit')
end
return redis.status_reply('OK')
