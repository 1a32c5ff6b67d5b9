-- active: makes a namespace the served one iff the expected one is served now.
--
-- KEYS  1 nearshore:active
-- ARGV  1 expected, '' = none   2 the new one
-- Returns 1 | 0.
--
-- Invariant: of two that promote at once, one is refused.
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[2])
return 1
