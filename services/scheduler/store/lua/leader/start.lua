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
  local model, class, start = unpack(redis.call('HMGET', key('job', job_id), 'model', 'priority', 'start'))
  local turns = key('turns', model, class)
  if start and tonumber(start) > tonumber(redis.call('HGET', turns, 'now') or start) then
    redis.call('HSET', turns, 'now', start)  -- virtual time: see fair.lua
  end
  add_event(job_id, 'event', event)
end
return 1
