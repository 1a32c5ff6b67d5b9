-- erase: raises a user's tombstone.
--
-- KEYS  1 nearshore:erased:{user}
-- ARGV  1 time of the erase, ms
-- Returns the time in force, ms.
--
-- Invariant: a tombstone only rises. Numbers stay under 2^53, where Lua's doubles are exact.
local stored = tonumber(redis.call('GET', KEYS[1]) or '0')
if tonumber(ARGV[1]) > stored then
  redis.call('SET', KEYS[1], ARGV[1])
  return tonumber(ARGV[1])
end
return stored
