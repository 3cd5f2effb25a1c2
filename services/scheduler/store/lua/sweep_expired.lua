-- Fail the jobs whose deadline has passed, waiting or running, and tell their pools.
-- ARGV: now in Unix ms ('' for Redis's own clock), Failed event, retention ms, error code, error message, most jobs
-- Returns how many deadlines had passed.
local now, event, retention_ms, code, message = given_or_now(ARGV[1]), ARGV[2], ARGV[3], ARGV[4], ARGV[5]

local expired = redis.call('ZRANGEBYSCORE', key('deadlines'), '-inf', now, 'LIMIT', 0, ARGV[6])
for _, job_id in ipairs(expired) do
  if fail_job(job_id, event, retention_ms, code, message) == 'changed' then
    notify_pool(job_id)
  end
  redis.call('ZREM', key('deadlines'), job_id)
end
return #expired
