-- QUEUED to RUNNING, with a Started event the first time.
-- ARGV: pool, token, job id, Started event
-- Returns 1, or 0 when the job has ended or is another pool's. One past RUNNING stays where it is: a lost task runs again.
local job_id, event = ARGV[3], ARGV[4]

local state = state_if_ours(job_id)
if not state then
  return 0
end
if state == 'QUEUED' then
  change_state(job_id, 'RUNNING')
  add_event(job_id, 'event', event)
end
return 1
