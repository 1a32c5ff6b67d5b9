-- unblock: lifts a block from all its SKUs in one set.
--
-- KEYS  1 nearshore:oos:{N}   2 nearshore:oos:{N}:blocked
-- ARGV  1 name of the block, pu:<id> or sku:<id>
-- Returns how many SKUs were under the block.
--
-- Invariant: a SKU leaves the set iff it is under no other block and the stock stream has it in stock. All blocked
-- SKUs of the set are read, so the caller needs no list of SKUs, which might be stale.
local found = 0
local all = redis.call('HGETALL', KEYS[2])
for at = 1, #all, 2 do
  local sku, blocked, rest = all[at], cjson.decode(all[at + 1]), {}
  for _, name in ipairs(blocked.by) do
    if name ~= ARGV[1] then
      table.insert(rest, name)
    end
  end
  if #rest < #blocked.by then
    found = found + 1
    if #rest > 0 then
      blocked.by = rest
      redis.call('HSET', KEYS[2], sku, cjson.encode(blocked))
    else
      redis.call('HDEL', KEYS[2], sku)
      if not blocked.out then
        redis.call('SREM', KEYS[1], sku)
      end
    end
  end
end
return found
