-- ARGV: lease ms, job id...
-- Only jobs that still have a lease (abandonable and not ended) get a new one.
local until_ms = now_ms() + tonumber(ARGV[1])
for index = 2, #ARGV do
  redis.call('ZADD', key('leases'), 'XX', 'GT', until_ms, ARGV[index])
end
return redis.status_reply('OK')
