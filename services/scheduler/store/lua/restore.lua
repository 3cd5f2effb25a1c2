-- Make the queue's keys again that Redis has lost.
-- ARGV: follower lease ms
for _, model in ipairs(known_models()) do
  local used = redis.call('SISMEMBER', key('queued_models'), model) == 1
    or redis.call('EXISTS', key('waiting', model)) == 1
  for _, class in ipairs(PRIORITIES) do
    used = used or redis.call('EXISTS', key('queue', model, class)) == 1
  end
  if used then
    restore_streams(model)
    restore_waiting(model)
  end
end
restore_deadlines()
restore_leases(tonumber(ARGV[1]))
return redis.status_reply('OK')
