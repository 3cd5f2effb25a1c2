-- Finish, fail or cancel a job as its leader.
-- ARGV: pool, token, job id, FINISHED or FAILED or CANCELLED, event, retention ms, error code, error message, the ids of
--       its workers by space
-- Returns 1 when the job now stands in that state, else 0: it ended otherwise or is another pool's.
local job_id, to, event, retention_ms = ARGV[3], ARGV[4], ARGV[5], ARGV[6]

local owner, num_images = unpack(redis.call('HMGET', key('job', job_id), 'pool', 'num_images'))
if owner ~= pool then
  return 0
end
local outcome
if to == 'FAILED' then
  outcome = fail_job(job_id, event, retention_ms, ARGV[7], ARGV[8], ARGV[9])
else
  if to == 'FINISHED' and redis.call('HLEN', key('images', job_id)) < tonumber(num_images) and state_if_ours(job_id) then
    return redis.error_reply('REFUSED job ' .. job_id .. ' may not become FINISHED before all its images are stored')
  end
  outcome = end_job(job_id, to, event, retention_ms, {workers = ARGV[9]})
end
return outcome == 'gone' and 0 or 1
