#!lua flags=allow-oom
-- Book a call whose result came after its job was settled. It is already spent; now it is also duplicate.
--
-- KEYS  money
-- ARGV  micro-dollars, then the accounts
for i = 2, #ARGV do book(ARGV[i], {duplicate = ARGV[1]}) end
