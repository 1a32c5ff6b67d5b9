-- unblock: lifts a block from all SKUs of one set that it holds.
--
-- KEYS  1 nearshore:oos:{N}   2 nearshore:oos:{N}:blocked
-- ARGV  1 name of the block, pu:<id> or sku:<id>
-- Returns how many SKUs were under it.
--
-- Invariant: a SKU leaves the set iff no other block holds it and the stock stream has it in stock.
-- It looks through all blocked SKUs of the set, so it needs no list that might have gone stale.
local found = 0
local all = redis.call('HGETALL', KEYS[2])
for at = 1, #all, 2 do
  local sku, held, rest = all[at], cjson.decode(all[at + 1]), {}
  for _, name in ipairs(held.by) do
    if name ~= ARGV[1] then
      table.insert(rest, name)
    end
  end
  if #rest < #held.by then
    found = found + 1
    if #rest > 0 then
      held.by = rest
      redis.call('HSET', KEYS[2], sku, cjson.encode(held))
    else
      redis.call('HDEL', KEYS[2], sku)
      if not held.out then
        redis.call('SREM', KEYS[1], sku)
      end
    end
  end
end
return found
