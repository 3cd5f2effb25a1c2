-- Cancel a job that has not ended, waiting or running, and tell its pool.
-- ARGV: job id, Cancelled event, retention ms, reason
-- Returns the job as it then stands; nil when there is none.
local job_id, event, retention_ms = ARGV[1], ARGV[2], ARGV[3]

if end_job(job_id, 'CANCELLED', event, retention_ms, {reason = ARGV[4]}) == 'changed' then
  notify_pool(job_id)
end
if redis.call('EXISTS', key('job', job_id)) == 0 then
  return nil
end
return snapshot(job_id)
