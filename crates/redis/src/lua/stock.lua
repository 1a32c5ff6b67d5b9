-- stock: applies records of the stock stream to one set, in their order.
--
-- KEYS  1 nearshore:oos:{N}   2 nearshore:oos:{N}:fence   3 nearshore:oos:{N}:blocked   4 nearshore:oos:{N}:gone
-- ARGV  1 how long a delisted SKU stays in the set, ms
--       then per record: SKU, source partition, offset, in stock (0), sold out (1) or delisted (2), record time in ms
-- Returns how many records were applied.
--
-- All keys are read before the first write: an error in between would raise the fence above a record without effect.
-- Invariant: a record at or below the set's fence of its partition changes nothing, unless it has the position of the
-- one before it, which was applied: one record of a topic may have become several, which come together. A blocked SKU stays in the set;
-- whether it is also out of stock is stored for its unblocking. A delisted SKU leaves the set when no list can name
-- it any more, by the time of later records and not by a clock. Offsets and times stay under 2^53, where Lua's
-- doubles are exact.
redis.call('SCARD', KEYS[1])
redis.call('HLEN', KEYS[2])
redis.call('HLEN', KEYS[3])
redis.call('ZCARD', KEYS[4])
local applied, newest, last = 0, 0, nil
for at = 2, #ARGV, 5 do
  local sku, partition, offset, is, time = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
  local fence = redis.call('HGET', KEYS[2], partition)
  local position = partition .. ':' .. offset
  if position == last or not fence or tonumber(fence) < tonumber(offset) then
    last = position
    local blocked = redis.call('HGET', KEYS[3], sku)
    blocked = blocked and cjson.decode(blocked)
    redis.call('HSET', KEYS[2], partition, offset)
    newest = math.max(newest, tonumber(time))
    if blocked then
      blocked.out = is ~= '0'
      redis.call('HSET', KEYS[3], sku, cjson.encode(blocked))
    elseif is ~= '0' then
      redis.call('SADD', KEYS[1], sku)
    else
      redis.call('SREM', KEYS[1], sku)
    end
    if is == '2' then
      redis.call('ZADD', KEYS[4], time, sku)
    else
      redis.call('ZREM', KEYS[4], sku)
    end
    applied = applied + 1
  end
end
-- At most 100 delisted SKUs per call; later records remove the rest.
local before = string.format('(%.0f', newest - tonumber(ARGV[1]))
for _, sku in ipairs(redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', before, 'LIMIT', 0, 100)) do
  if redis.call('HEXISTS', KEYS[3], sku) == 0 then
    redis.call('SREM', KEYS[1], sku)
    redis.call('ZREM', KEYS[4], sku)
  end
end
return applied
