-- block: claims SKUs of one set out, whatever their stock.
--
-- KEYS  1 nearshore:oos:{N}   2 nearshore:oos:{N}:blocked
-- ARGV  1 name of the block, pu:<id> or sku:<id>   2.. SKUs
-- Returns how many were not under this block before.
--
-- Invariant: a SKU under a block is in the set. Done twice it is done once. `out` remembers whether
-- the stock stream has the SKU sold out; `by` are the blocks that hold it, never empty.
local new = 0
for at = 2, #ARGV do
  local sku, held, known = ARGV[at], redis.call('HGET', KEYS[2], ARGV[at]), false
  if held then
    held = cjson.decode(held)
  else
    held = {out = redis.call('SISMEMBER', KEYS[1], sku) == 1, by = {}}
  end
  for _, name in ipairs(held.by) do
    known = known or name == ARGV[1]
  end
  if not known then
    table.insert(held.by, ARGV[1])
    redis.call('HSET', KEYS[2], sku, cjson.encode(held))
    redis.call('SADD', KEYS[1], sku)
    new = new + 1
  end
end
return new
