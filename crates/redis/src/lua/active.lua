-- active: replaces a text iff the expected one is stored; for the served namespace and for plans.
--
-- KEYS  1 nearshore:active or ns:plan
-- ARGV  1 expected text, '' = none   2 new text
-- Returns 1 | 0.
--
-- Invariant: of two processes that promote at once, one is refused.
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[2])
return 1
