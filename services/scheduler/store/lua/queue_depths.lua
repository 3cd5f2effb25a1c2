-- Returns [model, priority number, waiting jobs, age of the oldest in ms] for each model ever used and each priority class.
local now = now_ms()
local depths = {}
for _, model in ipairs(redis.call('SMEMBERS', key('queued_models'))) do
  local waiting = key('waiting', model)
  for priority in ipairs(PRIORITIES) do
    local from, to = priority * 2 ^ 40, '(' .. (priority + 1) * 2 ^ 40
    local count = redis.call('ZCOUNT', waiting, from, to)
    local oldest = redis.call('ZRANGEBYSCORE', waiting, from, to, 'LIMIT', 0, 1)[1]
    local accepted_at = oldest and tonumber(redis.call('HGET', key('job', oldest), 'accepted_at_ms') or nil) or now
    table.insert(depths, {model, priority, count, math.max(0, now - accepted_at)})
  end
end
return depths
