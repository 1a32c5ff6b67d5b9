-- discard: deletes all that is stored of a user in a namespace, for an erase that finds a value it cannot read.
--
-- KEYS  1 ns:{user}:state   2 ns:{user}:profile   3 nearshore:erased:{user}   4 ns:{user}:recall
-- ARGV  1 time of the erase, ms
-- Returns the time in force, ms.
--
-- Invariant: it never fails because of what is stored. A tombstone that can be read only rises; any other value in its
-- place is replaced. Numbers stay under 2^53, where Lua's doubles are exact.
redis.call('DEL', KEYS[1], KEYS[2], KEYS[4])
local stored
if redis.call('TYPE', KEYS[3])['ok'] == 'string' then
  stored = tonumber(redis.call('GET', KEYS[3]))
end
if stored and stored >= tonumber(ARGV[1]) then
  return stored
end
redis.call('DEL', KEYS[3])
redis.call('SET', KEYS[3], ARGV[1])
return tonumber(ARGV[1])
