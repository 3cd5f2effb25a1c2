-- What a follower has not seen yet.
-- ARGV: job id, the last sequence seen, the last position shown ('' when none is wanted)
-- Returns [state, [sequence, form, value], ...], unordered; nil when there is no such job.
local job_id, after, shown = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local state, model, sequence = unpack(redis.call('HMGET', key('job', job_id), 'state', 'model', 'sequence'))
if not state then
  return nil
end
local reply = {state}

if tonumber(sequence) > after then
  for _, entry in ipairs(redis.call('XRANGE', key('events', job_id), (after + 1) .. '-0', '+')) do
    table.insert(reply, {tonumber(string.match(entry[1], '^%d+')), entry[2][1], entry[2][2]})
  end
  local latest = redis.call('HVALS', key('progress', job_id))
  for _, value in ipairs(latest) do
    local colon = string.find(value, ':', 1, true)
    local progressed = tonumber(string.sub(value, 1, colon - 1))
    if progressed > after then
      table.insert(reply, {progressed, 'event', string.sub(value, colon + 1)})
    end
  end
end

-- A moved position takes a sequence number, for those to rise, but is not stored: it is old a second later.
if state == 'QUEUED' and shown ~= '' then
  local position = redis.call('ZRANK', key('waiting', model), job_id)
  if position and tostring(position) ~= shown then
    table.insert(reply, {next_sequence(job_id), 'position', tostring(position)})
  end
end
return reply
