-- claim: the start of a generation.
--
-- KEYS  1 ns:{user}:state   2 ns:{user}:profile   3 nearshore:erased:{user}
-- ARGV  1 due of the request, ms   2 state TTL, ms   3 expected version   4 activity after a user's first claim
-- Returns {blob, erased_at, profile or '', tombstone or '0', claim, pending before the claim}, {} if the version is
-- another one, or nil without a state.
--
-- Invariant: reading and clearing are one step, so an event is either in the returned state or finds `pending` empty
-- and requests a list again. A late claim for a request that was served already changes nothing: a newer request that
-- it cleared would never be served. A raised `ver` makes every cached copy stale. The claim rate is the text `last
-- day claims`; it and the activity are as `trigger::claimed` computes them. Numbers stay under 2^53, where Lua's doubles are exact.
local state = redis.call('HMGET', KEYS[1], 'blob', 'ver', 'claim', 'pending', 'claim_rate', 'erased_at')
if not state[1] then
  return false
end
if tonumber(state[2] or '0') ~= tonumber(ARGV[3]) then
  return {}
end
-- Read before anything is written: a value of another type must not cost the user the pending request.
local profile, erased = redis.call('GET', KEYS[2]) or '', redis.call('GET', KEYS[3]) or '0'
local due = tonumber(ARGV[1])
local today = math.floor(due / 86400000)
local last, day, claims = string.match(state[5] or '', '^(%-?%d+) (%-?%d+) (%d+)$')
last, day, claims = tonumber(last or '0'), tonumber(day or '0'), tonumber(claims or '0')
local activity = claims == 0 and ARGV[4] or '0'
-- Claims count on the day of the latest request: that of an older request (a sweep's) counts on that day too.
if claims == 0 or today > day then
  day, claims = today, 0
end
local claim = tonumber(state[3] or '0') + 1
redis.call('HSET', KEYS[1], 'pending', '', 'activity', activity,
  'claim_rate', string.format('%d %d %d', math.max(last, due), day, claims + 1),
  'claim', string.format('%d', claim), 'ver', string.format('%d', tonumber(state[2] or '0') + 1))
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return {state[1], state[6] or '0', profile, erased, claim, state[4] or ''}
