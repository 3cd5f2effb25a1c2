-- Take over the jobs of pools that have had no leader for long, and tell those pools.
-- ARGV: pool, token, read number, shortest absence ms, most jobs, model...
-- Returns jobs.
local number, absence_ms, room = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local now = now_ms()

local again = recall('claim_stale', number)
if again then
  return again
end

local function is_deserted(other)
  local renewed_at = tonumber(redis.call('HGET', key('pool', other), 'renewed_at_ms') or 0)
  return redis.call('EXISTS', key('leader', other)) == 0 and now - renewed_at >= absence_ms
end

local taken = {}

local function claim(stream, other)
  local ids = {}
  for _, pending in ipairs(redis.call('XPENDING', stream, GROUP, '-', '+', room - #taken, other)) do
    table.insert(ids, pending[1])
  end
  if #ids == 0 then
    return
  end
  for _, entry in ipairs(redis.call('XCLAIM', stream, GROUP, pool, 0, unpack(ids))) do
    local job_id = take(stream, entry)
    if job_id then
      table.insert(taken, job_id)
      redis.call('PUBLISH', key('controls', other), job_id)
    end
  end
end

for _, class in ipairs(PRIORITIES) do
  for index = 6, #ARGV do
    local stream = key('queue', ARGV[index], class)
    if redis.call('EXISTS', stream) == 1 then
      for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', stream, GROUP)) do
        local other = consumer[2]
        if other ~= pool and #taken < room and is_deserted(other) then
          claim(stream, other)
        end
      end
    end
  end
end
return remember('claim_stale', number, taken)
