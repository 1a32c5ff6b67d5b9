-- publish: conditionally writes a list.
--
-- KEYS  1 ns:{user}:state   2 nearshore:erased:{user}   3 ns:{user}:recall
-- ARGV  1 claim   2 erased_at of the state it was made from, ms   3 epoch   4 force, 1 or 0
--       5 only if there is no list of the model, 1 or 0
--       6 doc   7 seen   8 at, ms   9 audit   10 list TTL, ms   11 state TTL, ms
--       12 stage, 0 or 1
-- Returns stored | older | erased | nostate | epoch | kept.
--
-- Invariant: a list is stored iff its erased_at is the state's (or the tombstone's, where that is later), claim <=
-- state's claim, and (claim, stage) of the stored list < (claim, stage). So a list that is late, a duplicate, or by a
-- member that lost its claim is never stored. A stored list without a stage is of an earlier release: 1. The state's TTL is refreshed with the list's, so that no list outlives its state. Numbers stay under
-- 2^53, where Lua's doubles are exact.
local state = redis.call('HMGET', KEYS[1], 'ver', 'erased_at', 'claim')
local erased = tonumber(redis.call('GET', KEYS[2]) or '0')
local erased_at = math.max(tonumber(state[2] or '0'), erased)
if tonumber(ARGV[2]) < erased_at then
  return 'erased'
end
if not state[1] then
  return 'nostate'
end
if tonumber(ARGV[2]) ~= erased_at then
  return 'erased'
end
local claim = tonumber(ARGV[1])
if claim > tonumber(state[3] or '0') then
  return 'nostate'
end

local list = redis.call('HMGET', KEYS[3], 'claim', 'epoch', 'doc', 'erased_at', 'stage')
-- A list from before the erase does not count: this namespace has not folded the erase yet.
if list[1] and math.max(tonumber(state[2] or '0'), tonumber(list[4] or '0')) < erased then
  redis.call('DEL', KEYS[3])
  list = {false, false, false}
end
if list[1] then
  local stored, stage = tonumber(list[1]), tonumber(list[5] or '1')
  if stored > claim or (stored == claim and stage >= tonumber(ARGV[12])) then
    return 'older'
  end
  if ARGV[5] == '1' then
    local read, doc = pcall(cjson.decode, list[3] or '')
    if not (read and type(doc) == 'table' and doc['source'] == 'fallback') then
      redis.call('HSET', KEYS[3], 'stale', ARGV[8])
      return 'kept'
    end
  end
  if ARGV[4] ~= '1' and tonumber(list[2] or '0') > tonumber(ARGV[3]) then
    return 'epoch'
  end
end
-- By this Redis' clock: purchases before it cannot be due to this list.
local now = redis.call('TIME')
local stored_at = string.format('%d', now[1] * 1000 + math.floor(now[2] / 1000))
redis.call('HSET', KEYS[3], 'doc', ARGV[6], 'claim', ARGV[1], 'stage', ARGV[12], 'seen', ARGV[7], 'epoch', ARGV[3],
  'at', ARGV[8], 'audit', ARGV[9], 'erased_at', ARGV[2], 'stored_at', stored_at)
redis.call('HDEL', KEYS[3], 'stale')
redis.call('PEXPIRE', KEYS[3], ARGV[10])
redis.call('PEXPIRE', KEYS[1], ARGV[11])
return 'stored'
