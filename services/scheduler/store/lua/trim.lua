-- Drop what every stream holds before its oldest entry that is pending or was never delivered. Never XDEL: after that
-- Redis cannot tell a group's lag any more, and autoscaling goes by it.
-- Returns how many entries went.
local trimmed = 0
for _, model in ipairs(redis.call('SMEMBERS', key('queued_models'))) do
  for _, class in ipairs(PRIORITIES) do
    local stream = key('queue', model, class)
    if redis.call('EXISTS', stream) == 1 then
      local oldest_pending = redis.call('XPENDING', stream, GROUP)[2]
      -- Nobody else acknowledges an entry whose job's record is lost.
      for _ = 1, 100 do
        local entry = oldest_pending and redis.call('XRANGE', stream, oldest_pending, oldest_pending)[1]
        if not oldest_pending or (entry and redis.call('EXISTS', key('job', entry[2][2])) == 1) then
          break
        end
        redis.call('XACK', stream, GROUP, oldest_pending)
        oldest_pending = redis.call('XPENDING', stream, GROUP)[2]
      end
      -- Every entry after last-delivered-id is undelivered; that entry itself may stay.
      local group = redis.call('XINFO', 'GROUPS', stream)[1]
      local last_delivered
      for index = 1, #group, 2 do
        if group[index] == 'last-delivered-id' then
          last_delivered = group[index + 1]
        end
      end
      trimmed = trimmed + redis.call('XTRIM', stream, 'MINID', '=', oldest_pending or last_delivered)
    end
  end
end
return trimmed
