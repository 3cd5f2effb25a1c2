-- Put in front of every script, after the tables PATTERNS, TRANSITIONS and PRIORITIES, GROUP and KEEPER that scripts.py writes from
-- keys.py and jobs.py.
--
-- Rules for every script: a repeated run with the same arguments changes nothing more (replies get lost), and a job
-- changes state only through `change_state`.

local function key(name, ...)
  return string.format(PATTERNS[name], ...)
end

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- The time a caller gave, or Redis's own.
local function given_or_now(given)
  return tonumber(given) or now_ms()
end

-- A state that only another version knows is no end, and may end in no other way than these.
local UNKNOWN_STATE = {FAILED = true, CANCELLED = true}

local function has_ended(state)
  return next(TRANSITIONS[state] or UNKNOWN_STATE) == nil
end

-- [job id, [field, value, ...], [index of each stored image, ...]]; see record_from_reply.
local function snapshot(job_id)
  return {job_id, redis.call('HGETALL', key('job', job_id)), redis.call('HKEYS', key('images', job_id))}
end

-- Every model that was ever used here. Its card alone names one when the set is lost.
local function known_models()
  local models, seen = {}, {}
  for _, names in ipairs({redis.call('SMEMBERS', key('queued_models')), redis.call('HKEYS', key('models'))}) do
    for _, model in ipairs(names) do
      if not seen[model] then
        seen[model] = true
        table.insert(models, model)
      end
    end
  end
  return models
end

local function next_sequence(job_id)
  return redis.call('HINCRBY', key('job', job_id), 'sequence', 1)
end

-- form: 'event' (serialized) or 'position' (of a Queued event, which only a script can know).
local function add_event(job_id, form, value)
  redis.call('XADD', key('events', job_id), next_sequence(job_id) .. '-0', form, value)
  redis.call('PUBLISH', key('wake', job_id), 'event')
end

-- Add to, or with sign -1 take from, a named caller's counts: 'waiting' or 'open'. A count of 0 is deleted.
local function count(caller, what, images, sign)
  if not caller or caller == '' then
    return
  end
  for unit, number in pairs({jobs = 1, images = tonumber(images)}) do
    local field = caller .. ' ' .. what .. '_' .. unit
    if redis.call('HINCRBY', key('callers'), field, sign * number) <= 0 then
      redis.call('HDEL', key('callers'), field)
    end
  end
end

-- Add to, or with sign -1 take from, the bytes that the results of all open jobs may take in Redis. Images stored count
-- until their job's end.
local RESULT_BYTES = ' result_bytes' -- no caller's

local function expect(bytes, sign)
  if bytes and redis.call('HINCRBY', key('callers'), RESULT_BYTES, sign * bytes) <= 0 then
    redis.call('HDEL', key('callers'), RESULT_BYTES)
  end
end

-- 'changed', 'already' (it is in that state), or 'gone' (ended otherwise, or unknown). Any other change is a caller's error.
local function change_state(job_id, to)
  local job = key('job', job_id)
  local from, model, caller, images, bytes = unpack(
    redis.call('HMGET', job, 'state', 'model', 'caller', 'num_images', 'result_bytes'))
  if from == to then
    return 'already'
  end
  if not from or has_ended(from) then
    return 'gone'
  end
  if not (TRANSITIONS[from] or UNKNOWN_STATE)[to] then
    error({err = 'REFUSED job ' .. job_id .. ' is ' .. from .. ' and may not become ' .. to})
  end
  redis.call('HSET', job, 'state', to, to .. '_at_ms', now_ms())
  if from == 'QUEUED' and model then
    redis.call('ZREM', key('waiting', model), job_id)
    count(caller, 'waiting', images, -1)
  end
  if has_ended(to) then
    count(caller, 'open', images, -1)
    expect(bytes, -1)
  end
  return 'changed'
end

-- Keep for take_ended.lua how a job has ended, among the newest MOST_ENDS: there may be no scheduler to take it.
local MOST_ENDS = 100000
local function remember_end(job_id, to, about)
  local entry = {'job_id', job_id, 'state', to, 'images', redis.call('HLEN', key('images', job_id)),
    'ended_at_ms', now_ms(), 'code', about.code or '', 'reason', about.reason or '', 'workers', about.workers or ''}
  local names = {'request_id', 'caller', 'model', 'accepted_at_ms', 'RUNNING_at_ms', 'DECODING_at_ms', 'traceparent'}
  for index, value in ipairs(redis.call('HMGET', key('job', job_id), unpack(names))) do
    table.insert(entry, names[index])
    table.insert(entry, value or '')
  end
  redis.call('XADD', key('ended'), 'MAXLEN', '~', MOST_ENDS, '*', unpack(entry))
end

-- The one way a job ends: state, event, acknowledgement, and the start of its retention time. Returns as change_state.
-- It ends a damaged record as far as the fields left allow: one that cannot end would stop every sweep.
-- about: its `code`, `reason` and `workers`, as far as known.
local function end_job(job_id, to, event, retention_ms, about)
  local outcome = change_state(job_id, to)
  if outcome ~= 'changed' then
    return outcome
  end
  local job = key('job', job_id)
  remember_end(job_id, to, about)
  add_event(job_id, 'event', event)
  redis.call('HSET', job, 'last_event', event)
  redis.call('ZREM', key('deadlines'), job_id)
  redis.call('ZREM', key('leases'), job_id)
  local model, class, entry_id, request_id = unpack(
    redis.call('HMGET', job, 'model', 'priority', 'entry_id', 'request_id'))
  if model and class and entry_id then
    redis.call('XACK', key('queue', model, class), GROUP, entry_id)
  end
  for _, name in ipairs({'job', 'events', 'progress', 'images'}) do
    redis.call('PEXPIRE', key(name, job_id), retention_ms)
  end
  if request_id and request_id ~= '' then
    redis.call('PEXPIRE', key('request', request_id), retention_ms)
  end
  return outcome
end

-- The request_id of a job may make another.
local function free_request_id(job_id)
  local request_id = redis.call('HGET', key('job', job_id), 'request_id')
  if request_id and redis.call('GET', key('request', request_id)) == job_id then
    redis.call('DEL', key('request', request_id))
  end
end

-- Remove a job whose record is gone from the other keys, and wake its followers to learn of the loss.
local function forget_lost(job_id)
  for _, model in ipairs(known_models()) do
    redis.call('ZREM', key('waiting', model), job_id)
  end
  redis.call('ZREM', key('deadlines'), job_id)
  redis.call('ZREM', key('leases'), job_id)
  redis.call('PUBLISH', key('wake', job_id), 'event')
end

local function fail_job(job_id, event, retention_ms, code, message, workers)
  local outcome = end_job(
    job_id, 'FAILED', event, retention_ms, {code = code, reason = message, workers = workers})
  if outcome == 'changed' then
    redis.call('HSET', key('job', job_id), 'error_code', code, 'error_message', message)
  end
  return outcome
end

-- Tell the leader that holds a job to drop it. No pool holds a job that was never read.
local function notify_pool(job_id)
  local pool = redis.call('HGET', key('job', job_id), 'pool')
  if pool then
    redis.call('PUBLISH', key('controls', pool), job_id)
  end
end
