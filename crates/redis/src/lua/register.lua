-- register: writes the register of blocks in force, and its log.
--
-- KEYS  1 nearshore:{blocks}   2 nearshore:{blocks}:log
-- ARGV  1 name of the block, pu:<id> or sku:<id>   2 the block as JSON, '' = lift it
--       3 line for the log
-- Returns 1 if the register changed, else 0.
--
-- Invariant: a line is written iff the register changes, so a repeated request is logged once.
-- Read before anything is written, so that no change is without its line.
redis.call('LLEN', KEYS[2])
local stored = redis.call('HGET', KEYS[1], ARGV[1]) or ''
if stored == ARGV[2] then
  return 0
end
if ARGV[2] == '' then
  redis.call('HDEL', KEYS[1], ARGV[1])
else
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
end
redis.call('RPUSH', KEYS[2], ARGV[3])
redis.call('LTRIM', KEYS[2], -10000, -1)
return 1
