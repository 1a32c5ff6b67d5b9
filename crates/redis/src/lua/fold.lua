-- fold: the conditional write of one user, with what it does to profile, list and tombstone.
--
-- KEYS  1 ns:{user}:state   2 ns:{user}:profile   3 nearshore:erased:{user}   4 ns:{user}:recall
-- ARGV  1 expected version (0 = nothing stored)   2 life of the new state, ms   3 blob
--       4 pending   5 moved   6 pace
--       7 profile: set | delete | keep | none (unchanged, and there is none)   8 its text
--       9 list: keep | first | strip   10 doc   11 audit   12 at (first) or ticket (strip)
--      13 state TTL, ms   14 list TTL, ms
-- Returns {'stored', version} | {'stale'} | {'erased', tombstone, ms}.
--
-- Invariant: nothing is written unless the stored version is the expected one and the state knows
-- of the tombstone. So a duplicate, a stale, a late and a zombie's write change nothing.
-- Lua numbers are doubles, exact to 2^53: times are ms (< 2^43), versions and tickets count the
-- writes of one user. Formatted by '%d', never by tostring, which turns to 1e+15.
local life = tonumber(ARGV[2])
local erased = tonumber(redis.call('GET', KEYS[3]) or '0')
if life < erased then
  return {'erased', string.format('%d', erased)}
end
local held = redis.call('HMGET', KEYS[1], 'ver', 'life', 'ticket')
local ver = tonumber(held[1] or '0')
if ver ~= tonumber(ARGV[1]) then
  return {'stale'}
end
-- Compared with this namespace's own state, not with the tombstone: another namespace may have
-- raised that before, and this one's list must go nevertheless.
local reborn = life > tonumber(held[2] or '0')
-- A list that was made since this very erase, seen by its tombstone, stays.
local list = redis.call('HMGET', KEYS[4], 'ticket', 'life')
local dies = reborn and tonumber(list[2] or '0') < life
if ARGV[9] == 'strip' and not dies and list[1] ~= ARGV[12] then
  return {'stale'}
end

ver = ver + 1
redis.call('HSET', KEYS[1], 'blob', ARGV[3], 'ver', string.format('%d', ver), 'life', ARGV[2],
  'pending', ARGV[4], 'moved', ARGV[5], 'pace', ARGV[6], 'ticket', held[3] or '0')
redis.call('PEXPIRE', KEYS[1], ARGV[13])

if life > erased then
  redis.call('SET', KEYS[3], ARGV[2])
end
if ARGV[7] == 'set' then
  redis.call('SET', KEYS[2], ARGV[8])
elseif ARGV[7] == 'delete' or (ARGV[7] == 'none' and reborn) then
  redis.call('DEL', KEYS[2])
end

if dies then
  redis.call('DEL', KEYS[4])
end
if ARGV[9] == 'first' and redis.call('EXISTS', KEYS[4]) == 0 then
  redis.call('HSET', KEYS[4], 'doc', ARGV[10], 'ticket', '0', 'covers', '', 'epoch', '0',
    'at', ARGV[12], 'audit', ARGV[11], 'life', ARGV[2])
  redis.call('PEXPIRE', KEYS[4], ARGV[14])
elseif ARGV[9] == 'strip' and not dies then
  redis.call('HSET', KEYS[4], 'doc', ARGV[10])
end
return {'stored', ver}
