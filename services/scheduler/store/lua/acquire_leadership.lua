-- Become the leader of a pool that has none, under a token newer than every one before.
-- ARGV: pool, instance id, TTL ms
-- Returns the token, or nil while another instance leads. The leader itself gets its token again (a lost reply).
local pool, instance_id, ttl_ms = ARGV[1], ARGV[2], ARGV[3]
local state, leader = key('pool', pool), key('leader', pool)

local holder = redis.call('GET', leader)
if holder and holder ~= instance_id then
  return nil
end
redis.call('SET', leader, instance_id, 'PX', ttl_ms)
redis.call('HSET', state, 'renewed_at_ms', now_ms())
if holder then
  return tonumber(redis.call('HGET', state, 'token'))
end
return redis.call('HINCRBY', state, 'token', 1)
