-- checkpoint: stores how far a reader's records are written, on one primary.
--
-- KEYS  1 <reader>:checkpoint:{tag}, a tag per primary
-- ARGV  per partition: its name, and the offset where reading may resume
-- Returns how many positions were raised.
--
-- Invariant: a position only rises. It is written after all writes that it stands for were acknowledged, so it comes
-- behind them in the replication stream of this primary: a replica that lacks one of them lacks the position too.
-- Offsets stay under 2^53, where Lua's doubles are exact.
local raised = 0
for at = 1, #ARGV, 2 do
  local stored = redis.call('HGET', KEYS[1], ARGV[at])
  if not stored or tonumber(stored) < tonumber(ARGV[at + 1]) then
    redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 1])
    raised = raised + 1
  end
end
return raised
