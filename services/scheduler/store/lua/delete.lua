-- Forget a job that has ended, and its request_id, which may make another.
-- ARGV: job id
-- Errors: NOTENDED with its state
local job_id = ARGV[1]

local state = redis.call('HGET', key('job', job_id), 'state')
if state and not has_ended(state) then
  return redis.error_reply('NOTENDED ' .. state)
end
free_request_id(job_id)
for _, name in ipairs({'job', 'events', 'progress', 'images'}) do
  redis.call('DEL', key(name, job_id))
end
redis.call('PUBLISH', key('wake', job_id), 'event')
return redis.status_reply('OK')
