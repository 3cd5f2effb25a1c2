-- All jobs delivered to this pool that have not ended: a new leader goes on with them.
-- ARGV: pool, token
-- Returns jobs, by priority class and then by arrival within a model.
local jobs = {}
for _, class in ipairs(PRIORITIES) do
  for _, model in ipairs(known_models()) do
    local stream = key('queue', model, class)
    local after = redis.call('EXISTS', stream) == 1 and '0'
    while after do
      local reply = redis.call('XREADGROUP', 'GROUP', GROUP, pool, 'COUNT', 100, 'STREAMS', stream, after)
      after = nil
      for _, entry in ipairs(reply and reply[1][2] or {}) do
        after = entry[1]
        local job_id = take(stream, entry)
        if job_id then
          table.insert(jobs, snapshot(job_id))
        end
      end
    end
  end
end
return jobs
