-- Accept requests durably: an accepted job is never lost. Each is accepted or refused for itself, in their order.
-- ARGV: follower lease ms, most waiting jobs of a model, most bytes that the results of all open jobs may take ('' for
--       any), then of each request: job id, request id among those of all callers ('' for none), digest, request JSON,
--       number of images, model, priority number, timeout ms, abandonable (1 or 0), traceparent ('' for none), caller
--       ('' for an anonymous one), its cost in row-calls, bytes that its results may take, the caller's bound of each of
--       COUNTS (0: none)
-- Returns for each request [the job id given, accepted_at_ms, jobs ahead of it], [the id of the job which this request
-- id already made], or an error: ALREADYEXISTS, QUEUEFULL, MEMORYFULL with the bytes that the results of open jobs may
-- take without it, OVERQUOTA with the count's name and value
local lease_ms, most_waiting, most_bytes = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local BOUNDS = 13  -- the fields of a request before its caller's bounds
local now = now_ms()

local restored, models = {}, {}

local function restore_once(model)
  if not restored[model] then
    restore_streams(model)
    restore_waiting(model)
    restore_deadlines()
    restore_leases(lease_ms)
    restore_callers()
    restored[model] = true
  end
end

local function as_accepted(job_id, accepted_at_ms, model)
  return {job_id, tonumber(accepted_at_ms), redis.call('ZRANK', key('waiting', model), job_id) or 0}
end

-- The job that a request id has made before takes this request as well.
local function accept_again(job_id, digest, abandonable)
  if redis.call('HGET', key('job', job_id), 'digest') ~= digest then
    return redis.error_reply('ALREADYEXISTS job ' .. job_id)
  end
  if abandonable == '1' then
    redis.call('ZADD', key('leases'), 'XX', 'GT', now + lease_ms, job_id)
  else
    redis.call('HSET', key('job', job_id), 'abandonable', 0)  -- submitted as well: it outlives its followers
    redis.call('ZREM', key('leases'), job_id)
  end
  return {job_id}
end

-- A caller's counts with one more job, as [field, number, ...]; or nil and the error, where one passes its bound.
local function counted(caller, num_images, bounds)
  local fields, counts = {}, {}
  for index, name in ipairs(COUNTS) do
    fields[index] = caller .. ' ' .. name
  end
  for index, has in ipairs(redis.call('HMGET', key('callers'), unpack(fields))) do
    local name, bound, has = COUNTS[index], tonumber(bounds[index]), tonumber(has or 0)
    local with = has + (string.find(name, 'images') and num_images or 1)
    if bound > 0 and with > bound then
      return nil, redis.error_reply('OVERQUOTA ' .. name .. ' ' .. has)
    end
    table.insert(counts, fields[index])
    table.insert(counts, with)
  end
  return counts
end

local function accept(request)
  local job_id, request_id, digest, request_json, num_images, model, priority, timeout_ms, abandonable, traceparent,
    caller, cost, bytes = unpack(request, 1, BOUNDS)
  local known = request_id == '' and job_id or redis.call('GET', key('request', request_id))
  if known and redis.call('EXISTS', key('job', known)) == 1 then
    if known == job_id then  -- the reply was lost
      return as_accepted(job_id, redis.call('HGET', key('job', job_id), 'accepted_at_ms') or now, model)
    end
    return accept_again(known, digest, abandonable)
  end

  local waiting = key('waiting', model)
  restore_once(model)
  if not takes_from(caller, redis.call('ZCARD', waiting) - 1, most_waiting) then  -- one of them is the keeper
    return redis.error_reply('QUEUEFULL ' .. most_waiting .. ' jobs wait')
  end
  local expected = most_bytes and tonumber(redis.call('HGET', key('callers'), RESULT_BYTES) or 0)
  if expected and expected + bytes > most_bytes then
    return redis.error_reply('MEMORYFULL ' .. string.format('%.0f', expected))
  end
  if caller ~= '' then
    local counts, over = counted(caller, num_images, {unpack(request, BOUNDS + 1)})
    if over then
      return over
    end
    redis.call('HSET', key('callers'), unpack(counts))
  end
  expect(bytes, 1)

  local class, deadline = PRIORITIES[tonumber(priority)], now + timeout_ms
  local entry_id = redis.call('XADD', key('queue', model, class), '*', 'job', job_id)
  local rank, start = next_rank(model, tonumber(priority), caller, tonumber(cost))
  redis.call('HSET', key('job', job_id),
    'state', 'QUEUED', 'request', request_json, 'request_id', request_id, 'digest', digest, 'num_images', num_images,
    'model', model, 'priority', class, 'entry_id', entry_id, 'accepted_at_ms', now, 'deadline_ms', deadline,
    'abandonable', abandonable, 'sequence', 1, 'traceparent', traceparent, 'caller', caller, 'cost', cost,
    'start', start, 'result_bytes', bytes)
  if request_id ~= '' then
    redis.call('SET', key('request', request_id), job_id)
  end
  redis.call('ZADD', key('deadlines'), deadline, job_id)
  if abandonable == '1' then
    redis.call('ZADD', key('leases'), now + lease_ms, job_id)
  end
  redis.call('ZADD', waiting, rank, job_id)
  local accepted = as_accepted(job_id, now, model)
  redis.call('XADD', key('events', job_id), '1-0', 'position', accepted[3])  -- it has no followers yet to wake
  models[model] = true
  return accepted
end

local replies, size = {}, BOUNDS + #COUNTS
for first = 4, #ARGV, size do
  local _, reply = pcall(accept, {unpack(ARGV, first, first + size - 1)})
  table.insert(replies, type(reply) == 'table' and reply or {err = tostring(reply)})
end
for model in pairs(models) do
  redis.call('PUBLISH', key('accepted'), model)
end
return replies
