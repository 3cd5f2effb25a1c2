-- ARGV: job id
-- Returns the job, or nil.
if redis.call('EXISTS', key('job', ARGV[1])) == 0 then
  return nil
end
return snapshot(ARGV[1])
