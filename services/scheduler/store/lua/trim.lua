-- Drop the entries of every stream before its oldest one that is pending or was never delivered. Never XDEL: after that
-- Redis cannot tell a group's lag any more, and autoscaling uses it.
-- Returns how many entries went.
local trimmed = 0

local function before(one, other)
  local one_ms, one_number = string.match(one, '(%d+)-(%d+)')
  local other_ms, other_number = string.match(other, '(%d+)-(%d+)')
  return tonumber(one_ms) < tonumber(other_ms) or (one_ms == other_ms and tonumber(one_number) < tonumber(other_number))
end

for _, model in ipairs(redis.call('SMEMBERS', key('queued_models'))) do
  for priority, class in ipairs(PRIORITIES) do
    local stream = key('queue', model, class)
    if redis.call('EXISTS', stream) == 1 then
      local oldest_pending = redis.call('XPENDING', stream, GROUP)[2]
      -- No other script acknowledges an entry whose job's record is lost.
      for _ = 1, 100 do
        local entry = oldest_pending and redis.call('XRANGE', stream, oldest_pending, oldest_pending)[1]
        if not oldest_pending or (entry and redis.call('EXISTS', key('job', entry[2][2])) == 1) then
          break
        end
        redis.call('XACK', stream, GROUP, oldest_pending)
        oldest_pending = redis.call('XPENDING', stream, GROUP)[2]
      end
      -- Every entry up to the last-delivered one was read; of those after it some. That entry itself may stay.
      local delivered = tell_group(model, priority)
      local oldest = oldest_pending and before(oldest_pending, delivered) and oldest_pending or delivered
      trimmed = trimmed + redis.call('XTRIM', stream, 'MINID', '=', oldest)
    end
  end
end
return trimmed
