-- The ends of jobs, each for one taker, who logs it and acknowledges it (ended_told.lua). A taker that has not done
-- so for the given time is gone: another takes it.
-- ARGV: most jobs, patience with a taker in ms
-- Returns [entry id, [field, value, ...]] of each.
local most, patience_ms = ARGV[1], ARGV[2]
if redis.call('EXISTS', key('ended')) == 0 then
  return {}
end
if #redis.call('XINFO', 'GROUPS', key('ended')) == 0 then
  redis.call('XGROUP', 'CREATE', key('ended'), GROUP, '0')
end

local left = redis.call('XAUTOCLAIM', key('ended'), GROUP, GROUP, patience_ms, '0', 'COUNT', most)[2]
if #left > 0 then
  return left
end
local new = redis.call('XREADGROUP', 'GROUP', GROUP, GROUP, 'COUNT', most, 'STREAMS', key('ended'), '>')
return new and new[1][2] or {}
