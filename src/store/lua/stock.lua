-- stock: records of the stock stream, for one set, in their order.
--
-- KEYS  1 nearshore:oos:{N}   2 nearshore:oos:{N}:fence   3 nearshore:oos:{N}:blocked
-- ARGV  per record: SKU, source partition, offset, out (1) or in (0)
-- Returns how many were applied.
--
-- Invariant: a record at or below the set's fence of its partition changes nothing, and a blocked
-- SKU stays in the set; whether it is out besides is kept for the day of its unblocking.
-- Offsets stay under 2^53, where Lua's doubles are exact.
local applied = 0
for at = 1, #ARGV, 4 do
  local sku, partition, offset, out = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local fence = redis.call('HGET', KEYS[2], partition)
  if not fence or tonumber(fence) < tonumber(offset) then
    redis.call('HSET', KEYS[2], partition, offset)
    local blocked = redis.call('HGET', KEYS[3], sku)
    if blocked then
      blocked = cjson.decode(blocked)
      blocked.out = out == '1'
      redis.call('HSET', KEYS[3], sku, cjson.encode(blocked))
    elseif out == '1' then
      redis.call('SADD', KEYS[1], sku)
    else
      redis.call('SREM', KEYS[1], sku)
    end
    applied = applied + 1
  end
end
return applied
