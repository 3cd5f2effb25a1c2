-- ARGV: pool, token, instance id, TTL ms
-- Returns 1 while no newer token was given out, even if the TTL ran out meanwhile; else 0.
local pool, token, instance_id, ttl_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

if redis.call('HGET', key('pool', pool), 'token') ~= token then
  return 0
end
redis.call('SET', key('leader', pool), instance_id, 'PX', ttl_ms)
redis.call('HSET', key('pool', pool), 'renewed_at_ms', now_ms())
return 1
