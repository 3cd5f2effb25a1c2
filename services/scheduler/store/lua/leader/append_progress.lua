-- The latest progress of many images at once. It replaces the one before: a late follower needs no old progress.
-- ARGV: pool, token, then for each: job id, image index, Progress event
for at = 3, #ARGV, 3 do
  local job_id, index, event = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local state = state_if_ours(job_id)
  local running = state and state ~= 'QUEUED' and redis.call('HEXISTS', key('images', job_id), index) == 0
  if running then
    local progress = key('progress', job_id)
    local last = redis.call('HGET', progress, index)
    if not last or string.match(last, '^%d+:(.*)$') ~= event then
      local value = next_sequence(job_id) .. ':' .. event
      redis.call('HSET', progress, index, value)
      redis.call('PUBLISH', key('wake', job_id), value)
    end
  end
end
return redis.status_reply('OK')
