-- delta: a chained addition to one shard of the counts.
--
-- KEYS  1 ns:counts:{sNN}:fence   2 ns:counts:{sNN}:buckets   3.. ns:counts:{sNN}:bB, one per bucket
-- ARGV  1 source partition   2 prev, '' = none yet   3 last   4 TTL of a bucket, ms
--       then per bucket key: B, number of cells, and per cell its field and the increment
-- Returns {'stored'} | {'fence', offset or ''}.
--
-- Invariant: a delta is applied iff the stored fence of the partition is `prev`; offsets are compared as text. So each
-- record is counted once, even if deltas are sent twice or late.
local fence = redis.call('HGET', KEYS[1], ARGV[1]) or ''
if fence ~= ARGV[2] then
  return {'fence', fence}
end
local at = 5
for key = 3, #KEYS do
  redis.call('SADD', KEYS[2], ARGV[at])
  local cells = tonumber(ARGV[at + 1])
  at = at + 2
  for _ = 1, cells do
    redis.call('HINCRBY', KEYS[key], ARGV[at], ARGV[at + 1])
    at = at + 2
  end
  redis.call('PEXPIRE', KEYS[key], ARGV[4])
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return {'stored'}
