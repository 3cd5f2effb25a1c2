-- Deliver the next waiting jobs to this pool: HIGH of every model, then NORMAL, then LOW.
-- ARGV: pool, token, read number, most jobs, model...
-- Returns jobs.
local number, room = ARGV[3], tonumber(ARGV[4])

local again = recall('read_new', number)
if again then
  return again
end

local taken = {}
for _, class in ipairs(PRIORITIES) do
  for index = 5, #ARGV do
    local stream = key('queue', ARGV[index], class)
    local exists = redis.call('EXISTS', stream) == 1
    -- Again while entries of ended jobs were passed over and there is room left.
    while exists and #taken < room do
      local reply = redis.call('XREADGROUP', 'GROUP', GROUP, pool, 'COUNT', room - #taken, 'STREAMS', stream, '>')
      if not reply then
        break
      end
      for _, entry in ipairs(reply[1][2]) do
        local job_id = take(stream, entry)
        if job_id then
          table.insert(taken, job_id)
        end
      end
    end
  end
end
return remember('read_new', number, taken)
