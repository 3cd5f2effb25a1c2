-- Make way for the next leader at once.
-- ARGV: pool, token, instance id
local pool, token, instance_id = ARGV[1], ARGV[2], ARGV[3]

if redis.call('HGET', key('pool', pool), 'token') == token and redis.call('GET', key('leader', pool)) == instance_id then
  redis.call('DEL', key('leader', pool))
end
return redis.status_reply('OK')
