-- Cancel the abandonable jobs without followers for the lease time, and tell their pools. The client that comes
-- back with the request_id of one wants its picture still: that makes the job anew.
-- ARGV: now in Unix ms ('' for Redis's own clock), lease ms, Cancelled event, retention ms, most jobs, reason
-- Returns how many leases had run out.
local now, lease_ms, event, retention_ms = given_or_now(ARGV[1]), tonumber(ARGV[2]), ARGV[3], ARGV[4]

-- Sweeps come every second or so. After a longer gap Redis or all schedulers were away, and no lease could be renewed:
-- all followers get one lease time to come back, those too whose leases have some of theirs left.
local last = tonumber(redis.call('GET', key('leases_swept')) or 0)
redis.call('SET', key('leases_swept'), now)
if now - last > lease_ms / 2 then
  for _, job_id in ipairs(redis.call('ZRANGEBYSCORE', key('leases'), '-inf', now + lease_ms)) do
    redis.call('ZADD', key('leases'), 'XX', now + lease_ms, job_id)
  end
  return 0
end

local abandoned = redis.call('ZRANGEBYSCORE', key('leases'), '-inf', now, 'LIMIT', 0, ARGV[5])
for _, job_id in ipairs(abandoned) do
  if end_job(job_id, 'CANCELLED', event, retention_ms, {reason = ARGV[6]}) == 'changed' then
    notify_pool(job_id)
    free_request_id(job_id)
  end
  redis.call('ZREM', key('leases'), job_id)
end
return #abandoned
