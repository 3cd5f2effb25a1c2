-- The events that a follower has not seen yet.
-- ARGV: job id, the last sequence seen, the last position shown ('' when none is wanted)
-- Returns [state, [sequence, form, value], ...], unordered; nil when there is no such job.
local job_id, after, shown = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local state, model, sequence = unpack(redis.call('HMGET', key('job', job_id), 'state', 'model', 'sequence'))
if not state then
  return nil
end
local reply = {state}

-- The first event of a job has sequence 1. A stream that begins otherwise is one that Redis has lost: its events are told
-- again, of the images by their index alone, whose bytes a follower is given from elsewhere anyway.
local function image_event(index)
  local number = index < 128 and string.char(index) or string.char(128 + index % 128, math.floor(index / 128))
  local image = index == 0 and '' or string.char(8) .. number  -- Image.index
  return string.char(6 * 8 + 2, #image) .. image  -- GenerateEvent.image
end

local function restore_events()
  local job, events = key('job', job_id), key('events', job_id)
  local first = redis.call('XRANGE', events, '-', '+', 'COUNT', 1)[1]
  local begins, last_event = unpack(redis.call('HMGET', job, 'events_from', 'last_event'))
  if first and first[1] == (begins or '1-0') then
    return
  end
  redis.call('DEL', events)
  redis.call('HSET', job, 'events_from', (sequence + 1) .. '-0')
  if state == 'QUEUED' then
    add_event(job_id, 'position', redis.call('ZRANK', key('waiting', model), job_id) or 0)
  else
    add_event(job_id, 'event', string.char(4 * 8 + 2, 0))
  end
  local indices = redis.call('HKEYS', key('images', job_id))
  table.sort(indices, function(one, other) return tonumber(one) < tonumber(other) end)
  for _, index in ipairs(indices) do
    add_event(job_id, 'event', image_event(tonumber(index)))
  end
  if last_event then
    add_event(job_id, 'event', last_event)
  end
  sequence = redis.call('HGET', job, 'sequence')
  if has_ended(state) then
    redis.call('PEXPIRE', events, math.max(1, redis.call('PTTL', job)))
  end
end

if tonumber(sequence) > after then
  restore_events()
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

-- A moved position takes a sequence number, for those to rise, but is not stored: it is old a second later, and not told
-- while Redis takes no writes.
if state == 'QUEUED' and shown ~= '' then
  local position = redis.call('ZRANK', key('waiting', model), job_id)
  if position and tostring(position) ~= shown then
    local moved = redis.pcall('HINCRBY', key('job', job_id), 'sequence', 1)
    if type(moved) == 'number' then
      table.insert(reply, {moved, 'position', tostring(position)})
    end
  end
end
return reply
