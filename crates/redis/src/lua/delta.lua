-- delta: a chained addition to one shard of the counts.
--
-- KEYS  1 ns:counts:{sNN}:fence   2 ns:counts:{sNN}:buckets   3.. ns:counts:{sNN}:bB, one per bucket
-- ARGV  1 source partition   2 prev, '' = none yet   3 last   4 TTL of a bucket, ms
--       then per bucket key: B, number of cells, and per cell its field and the increment
-- Returns {'stored', number of cells left out} | {'fence', offset or ''}.
--
-- A cell that holds no integer is left as it is and left out, at the cost of that cell alone. All is read before the
-- first write: an error in between would add the cells before it again with every try.
-- Invariant: a delta is applied iff the stored fence of the partition is `prev`; offsets are compared as text. So each
-- record is counted once, even if deltas are sent twice or late.
local fence = redis.call('HGET', KEYS[1], ARGV[1]) or ''
if fence ~= ARGV[2] then
  return {'fence', fence}
end
redis.call('SCARD', KEYS[2])
local at, bad = 5, {}
for key = 3, #KEYS do
  local cells = tonumber(ARGV[at + 1])
  at = at + 2
  for _ = 1, cells do
    local stored = redis.call('HGET', KEYS[key], ARGV[at])
    -- At most 15 digits, so that no sum overflows.
    if stored and not (#stored < 17 and string.match(stored, '^-?%d+$')) then
      bad[at] = true
    end
    at = at + 2
  end
end
local left_out = 0
at = 5
for key = 3, #KEYS do
  redis.call('SADD', KEYS[2], ARGV[at])
  local cells = tonumber(ARGV[at + 1])
  at = at + 2
  for _ = 1, cells do
    if bad[at] then
      left_out = left_out + 1
    else
      redis.call('HINCRBY', KEYS[key], ARGV[at], ARGV[at + 1])
    end
    at = at + 2
  end
  redis.call('PEXPIRE', KEYS[key], ARGV[4])
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return {'stored', left_out}
