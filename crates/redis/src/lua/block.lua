-- block: marks SKUs of one set as sold out, whatever their stock.
--
-- KEYS  1 nearshore:oos:{N}   2 nearshore:oos:{N}:blocked
-- ARGV  1 name of the block, pu:<id> or sku:<id>   2.. SKUs
-- Returns how many SKUs were not under this block before.
--
-- Invariant: a SKU under a block is in the set. A repeated call changes nothing. `out` says whether the stock stream
-- has the SKU sold out; `by` are the blocks of the SKU, never empty.
local new = 0
for at = 2, #ARGV do
  local sku, blocked, known = ARGV[at], redis.call('HGET', KEYS[2], ARGV[at]), false
  if blocked then
    blocked = cjson.decode(blocked)
  else
    blocked = {out = redis.call('SISMEMBER', KEYS[1], sku) == 1, by = {}}
  end
  for _, name in ipairs(blocked.by) do
    known = known or name == ARGV[1]
  end
  if not known then
    table.insert(blocked.by, ARGV[1])
    redis.call('HSET', KEYS[2], sku, cjson.encode(blocked))
    redis.call('SADD', KEYS[1], sku)
    new = new + 1
  end
end
return new
