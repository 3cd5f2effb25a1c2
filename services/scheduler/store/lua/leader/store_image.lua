-- Keep an image file and announce it. The first file of an index stays.
-- ARGV: pool, token, job id, image index, Image with its bytes, Image event without
-- Returns 1, or 0 when the job has ended or is another pool's.
local job_id, index, image, event = ARGV[3], ARGV[4], ARGV[5], ARGV[6]

local state = state_if_ours(job_id)
if not state then
  return 0
end
if state == 'QUEUED' then
  return redis.error_reply('REFUSED job ' .. job_id .. ' is QUEUED and can have no image')
end
if redis.call('HSETNX', key('images', job_id), index, image) == 1 then
  redis.call('HDEL', key('progress', job_id), index)
  add_event(job_id, 'event', event)
end
return 1
