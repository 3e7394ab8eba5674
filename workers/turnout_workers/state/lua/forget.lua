-- Drop accounts.
--
-- KEYS  money, ceilings
-- ARGV  their names
for _, name in ipairs(ARGV) do
  redis.call('HDEL', KEYS.money, name .. '|spent', name .. '|reserved', name .. '|unsure', name .. '|duplicate')
  redis.call('HDEL', KEYS.ceilings, name)
end
