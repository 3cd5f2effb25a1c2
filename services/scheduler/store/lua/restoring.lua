-- Put after common.lua in front of the scripts that make keys again which Redis has lost, from those it still has.
--
-- A job that has not ended is found in its stream, by its deadline and, while it waits, in `waiting`. Where one of them is
-- lost the others have its jobs. A script that would make a lost key anew restores it first, or the loss stays hidden.

-- Whether a sorted set is lost, or was never made; from now on it is neither.
local function was_lost(index)
  if redis.call('ZSCORE', index, KEEPER) then
    return false
  end
  redis.call('ZADD', index, '+inf', KEEPER)
  return true
end

-- [state, model, priority class, accepted_at_ms, deadline_ms, abandonable] of a job that has not ended; else nil.
local function live(job_id)
  local fields = redis.call(
    'HMGET', key('job', job_id), 'state', 'model', 'priority', 'accepted_at_ms', 'deadline_ms', 'abandonable')
  if fields[1] and not has_ended(fields[1]) then
    return fields
  end
end

-- visit(job id, fields, priority number) for the live jobs in the streams of a model, in the order they are read.
local function in_streams(model, visit)
  for priority, class in ipairs(PRIORITIES) do
    for _, entry in ipairs(redis.call('XRANGE', key('queue', model, class), '-', '+')) do
      local job_id = entry[2][2]
      local fields = live(job_id)
      if fields then
        visit(job_id, fields, priority)
      end
    end
  end
end

local function make_streams(model)
  -- Every class at once, and from id 0: autoscaling uses the group's lag and pending entries, and can read neither of
  -- a group that is not there. One that starts later has no lag until its first read.
  local made = {}
  for _, class in ipairs(PRIORITIES) do
    if redis.call('EXISTS', key('queue', model, class)) == 0 then
      redis.call('XGROUP', 'CREATE', key('queue', model, class), GROUP, '0', 'MKSTREAM')
      made[class] = true
    end
  end
  redis.call('SADD', key('queued_models'), model)
  return made
end

-- Jobs that a pool holds are pending again for its next leader.
local function restore_streams(model)
  local made, jobs, seen = make_streams(model), {}, {}
  if not next(made) then
    return
  end
  for _, index in ipairs({key('deadlines'), key('waiting', model)}) do
    for _, job_id in ipairs(redis.call('ZRANGE', index, 0, -1)) do
      local fields = live(job_id)
      if fields and fields[2] == model and made[fields[3]] and not seen[job_id] then
        seen[job_id] = true
        -- Those that a pool has read came before those that wait.
        local rank = tonumber(redis.call('ZSCORE', key('waiting', model), job_id) or 0)
        table.insert(jobs, {job_id, fields[3], rank, tonumber(fields[4])})
      end
    end
  end
  table.sort(jobs, function(one, other)
    return one[3] < other[3] or (one[3] == other[3] and one[4] < other[4])
  end)
  for _, job in ipairs(jobs) do
    local entry_id = redis.call('XADD', key('queue', model, job[2]), '*', 'job', job[1])
    redis.call('HSET', key('job', job[1]), 'entry_id', entry_id)
    local pool = redis.call('HGET', key('job', job[1]), 'pool')
    if pool then
      redis.call('XCLAIM', key('queue', model, job[2]), GROUP, pool, 0, entry_id, 'FORCE', 'JUSTID')
    end
  end
end

local function restore_waiting(model)
  if was_lost(key('waiting', model)) then
    local held = {}
    in_streams(model, function(job_id, fields, priority)
      if fields[1] == 'QUEUED' then
        local caller, cost, pool = unpack(redis.call('HMGET', key('job', job_id), 'caller', 'cost', 'pool'))
        local rank = next_rank(model, priority, caller or '', tonumber(cost or 1))
        redis.call('ZADD', key('waiting', model), rank, job_id)
        if pool then
          table.insert(held, {priority, job_id, rank})
        end
      end
    end)
    for _, job in ipairs(held) do
      mark_read(model, unpack(job))
    end
  end
end

local function restore_deadlines()
  if was_lost(key('deadlines')) then
    for _, model in ipairs(known_models()) do
      in_streams(model, function(job_id, fields)
        redis.call('ZADD', key('deadlines'), fields[5], job_id)
      end)
    end
  end
end

-- Any other version counts nothing, so a new leadership, as each rollout ends with, has it counted again.
local function restore_callers()
  if redis.call('HEXISTS', key('callers'), KEEPER) == 1 then
    return
  end
  redis.call('DEL', key('callers'))
  redis.call('HSET', key('callers'), KEEPER, 0)
  for _, job_id in ipairs(redis.call('ZRANGE', key('deadlines'), 0, -1)) do
    local state, caller, images, bytes = unpack(
      redis.call('HMGET', key('job', job_id), 'state', 'caller', 'num_images', 'result_bytes'))
    if state and not has_ended(state) then
      count(caller, 'open', images, 1)
      expect(bytes, 1)
      if state == 'QUEUED' then
        count(caller, 'waiting', images, 1)
      end
    end
  end
end

local function restore_leases(lease_ms)
  if was_lost(key('leases')) then
    for _, job_id in ipairs(redis.call('ZRANGE', key('deadlines'), 0, -1)) do
      local fields = live(job_id)
      if fields and fields[6] == '1' then
        redis.call('ZADD', key('leases'), now_ms() + lease_ms, job_id)
      end
    end
  end
end
