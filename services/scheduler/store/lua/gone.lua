-- ARGV: pool ('' for any), job id...
-- Returns [the jobs that have ended or belong to another pool than the one given], [those of which there is no record].
local pool = ARGV[1]
local gone, lost = {}, {}
for index = 2, #ARGV do
  local state, owner = unpack(redis.call('HMGET', key('job', ARGV[index]), 'state', 'pool'))
  if not state then
    forget_lost(ARGV[index])
    table.insert(lost, ARGV[index])
  elseif has_ended(state) or (pool ~= '' and owner ~= pool) then
    table.insert(gone, ARGV[index])
  end
end
return {gone, lost}
