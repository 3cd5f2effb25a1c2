-- Returns [model, priority number, waiting jobs, age of the oldest in ms] for each model ever used and each priority class.
local now = now_ms()
local depths = {}

-- The first in the order of reading may be another caller's, and younger.
local function oldest_unread(model, class)
  local stream = key('queue', model, class)
  local group = redis.call('EXISTS', stream) == 1 and redis.call('XINFO', 'GROUPS', stream)[1] or {}
  for index = 1, #group, 2 do
    if group[index] == 'last-delivered-id' then
      local entry = redis.call('XRANGE', stream, '(' .. group[index + 1], '+', 'COUNT', 1)[1]
      return entry and redis.call('ZSCORE', key('waiting', model), entry[2][2]) and entry[2][2]
    end
  end
end

for _, model in ipairs(redis.call('SMEMBERS', key('queued_models'))) do
  local waiting = key('waiting', model)
  for priority, class in ipairs(PRIORITIES) do
    local from, to = priority * 2 ^ 40, '(' .. (priority + 1) * 2 ^ 40
    local count = redis.call('ZCOUNT', waiting, from, to)
    local oldest_at = now
    for _, job_id in ipairs({redis.call('ZRANGEBYSCORE', waiting, from, to, 'LIMIT', 0, 1)[1], oldest_unread(model, class)}) do
      oldest_at = math.min(oldest_at, tonumber(redis.call('HGET', key('job', job_id), 'accepted_at_ms') or now))
    end
    table.insert(depths, {model, priority, count, now - oldest_at})
  end
end
return depths
