-- Become the leader of a pool that has none, under a token newer than every one before.
-- ARGV: pool, id of the bid, TTL ms, the token that it must be above (workers remember tokens that Redis may have lost)
-- Returns the token, or nil while another instance leads. The bid that leads gets its token again (a lost reply).
local pool, instance_id, ttl_ms, above = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local state, leader = key('pool', pool), key('leader', pool)

local holder = redis.call('GET', leader)
if holder and holder ~= instance_id then
  return nil
end
redis.call('SET', leader, instance_id, 'PX', ttl_ms)
redis.call('HSET', state, 'renewed_at_ms', now_ms())
local token = tonumber(redis.call('HGET', state, 'token') or 0)
if holder and token > above then
  return token
end
redis.call('DEL', key('callers'))  -- another version may have ended jobs without counting
token = math.max(token, above) + 1
redis.call('HSET', state, 'token', string.format('%.0f', token))
return token
