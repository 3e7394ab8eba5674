#!lua flags=allow-oom
-- Book a call whose result came after its job was settled: it is spent already, and now also duplicate.
--
-- KEYS  money
-- ARGV  micro-dollars; then the accounts
for i = 2, #ARGV do book(ARGV[i], {duplicate = ARGV[1]}) end
