-- fold: conditionally writes one user, with profile, list and tombstone.
--
-- KEYS  1 ns:{user}:state   2 ns:{user}:profile   3 nearshore:erased:{user}   4 ns:{user}:recall
-- ARGV  1 expected version (0 = nothing stored)   2 erased_at of the new state, ms   3 blob
--       4 pending   5 activity   6 claim_rate
--       7 profile: set | delete | keep | none (unchanged, and there is none)   8 its text
--       9 list: keep | strip   10 doc   11 claim   12 stage (strip), 0 or 1   13 state TTL, ms
-- Returns {'stored', version} | {'stale'} | {'erased', tombstone, ms}.
--
-- Invariant: nothing is written unless the stored version is the expected one and the state is not older than the
-- tombstone. So a write that is a duplicate, stale, late, or by a member that lost its partition, changes nothing.
-- Lua numbers are doubles, exact to 2^53: times are ms (< 2^43), versions and claims count the writes of one user.
-- They are formatted by '%d', never by tostring, which writes 1e+15.
local erased_at = tonumber(ARGV[2])
local erased = tonumber(redis.call('GET', KEYS[3]) or '0')
if erased_at < erased then
  return {'erased', string.format('%d', erased)}
end
local state = redis.call('HMGET', KEYS[1], 'ver', 'erased_at', 'claim')
local ver = tonumber(state[1] or '0')
if ver ~= tonumber(ARGV[1]) then
  return {'stale'}
end
-- Compared with this namespace's own state, not with the tombstone: another namespace may have raised that before, and
-- this namespace's list must be deleted nevertheless.
local erased_again = erased_at > tonumber(state[2] or '0')
-- A list that was published after this erase, by its tombstone, is kept.
local list = redis.call('HMGET', KEYS[4], 'claim', 'erased_at', 'stage')
local drop_list = erased_again and tonumber(list[2] or '0') < erased_at
if ARGV[9] == 'strip' and not drop_list and (list[1] ~= ARGV[11] or (list[3] or '1') ~= ARGV[12]) then
  return {'stale'}
end

ver = ver + 1
redis.call('HSET', KEYS[1], 'blob', ARGV[3], 'ver', string.format('%d', ver), 'erased_at', ARGV[2],
  'pending', ARGV[4], 'activity', ARGV[5], 'claim_rate', ARGV[6], 'claim', state[3] or '0')
redis.call('PEXPIRE', KEYS[1], ARGV[13])

if erased_at > erased then
  redis.call('SET', KEYS[3], ARGV[2])
end
if ARGV[7] == 'set' then
  redis.call('SET', KEYS[2], ARGV[8])
elseif ARGV[7] == 'delete' or (ARGV[7] == 'none' and erased_again) then
  redis.call('DEL', KEYS[2])
end

if drop_list then
  redis.call('DEL', KEYS[4])
elseif ARGV[9] == 'strip' then
  redis.call('HSET', KEYS[4], 'doc', ARGV[10])
end
return {'stored', ver}
