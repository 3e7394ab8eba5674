#!lua flags=allow-oom
-- Prolong the leases that haven't expired.
--
-- KEYS  endpoints, call_lease_ends, then the leases
-- ARGV  ttl (ms), then the lease ids, in the order of their keys
for i = 2, #ARGV do
  local held = redis.call('HGET', KEYS[i + 1], 'call')
  local call = held and cmsgpack.unpack(held) or {}
  local member = (call.endpoint or '') .. ' ' .. ARGV[i]
  local ends_at = redis.call('ZSCORE', KEYS.call_lease_ends, member)
  if ends_at and tonumber(ends_at) > NOW then
    redis.call('ZADD', KEYS.call_lease_ends, NOW + ARGV[1], member)
    local record = call.probe > 0 and record_of(call.endpoint)
    if record and record[PROBE] == call.probe then
      record[PROBE_UNTIL] = NOW + ARGV[1]
      keep(call.endpoint, record)
    end
  end
end
