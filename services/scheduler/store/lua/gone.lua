-- ARGV: pool ('' for any), job id...
-- Returns the jobs that have ended, are unknown, or belong to another pool than the one given.
local pool = ARGV[1]
local gone = {}
for index = 2, #ARGV do
  local state, owner = unpack(redis.call('HMGET', key('job', ARGV[index]), 'state', 'pool'))
  if not state or has_ended(state) or (pool ~= '' and owner ~= pool) then
    table.insert(gone, ARGV[index])
  end
end
return gone
