-- Deliver the next waiting jobs to this pool: HIGH of every model, then NORMAL, then LOW; see fair.lua for their order.
-- Past that many, the next job is read as well while its caller has few in the pool: a flood that fills the pool is not
-- to keep out callers who come later but have an earlier turn.
-- ARGV: pool, token, read number, most jobs, how many are few, tasks that wait in the pool (JSON: by caller), model...
-- Returns jobs.
local number, room, few, held = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), cjson.decode(ARGV[6])

local again = recall('read_new', number)
if again then
  return again
end

-- Make an entry pending for this pool. One that Redis has lost is made anew.
local function deliver(stream, job_id)
  local job = key('job', job_id)
  local entry_id = redis.call('HGET', job, 'entry_id')
  local claimed = entry_id and redis.call('XCLAIM', stream, GROUP, pool, 0, entry_id, 'FORCE', 'JUSTID')
  if not claimed or #claimed == 0 then
    entry_id = redis.call('XADD', stream, '*', 'job', job_id)
    redis.call('XCLAIM', stream, GROUP, pool, 0, entry_id, 'FORCE', 'JUSTID')
    redis.call('HSET', job, 'entry_id', entry_id)
  end
  redis.call('HSET', job, 'pool', pool)
end

local taken = {}

-- Whether there is room for a job of the caller.
local function admits(caller)
  return #taken < room or (held[caller] or 0) < few
end

-- Read from one range of `waiting`. Returns false once there is no more in it, or no room.
local function read(model, priority, range)
  local found = redis.call(
    'ZRANGEBYSCORE', key('waiting', model), range[1], range[2], 'WITHSCORES', 'LIMIT', 0, math.max(1, room - #taken))
  for index = 1, #found, 2 do
    local job_id = found[index]
    local state, owner, caller = unpack(redis.call('HMGET', key('job', job_id), 'state', 'pool', 'caller'))
    if state and not has_ended(state) then
      if not owner then
        if not admits(caller or '') then
          return false
        end
        deliver(key('queue', model, PRIORITIES[priority]), job_id)
        table.insert(taken, job_id)
        held[caller or ''] = (held[caller or ''] or 0) + 1
      end
      mark_read(model, priority, job_id, found[index + 1])
    else
      redis.call('ZREM', key('waiting', model), job_id)
      if not state then
        forget_lost(job_id)
      end
    end
  end
  return #found > 0
end

for priority, class in ipairs(PRIORITIES) do
  for index = 7, #ARGV do
    local model = ARGV[index]
    if redis.call('EXISTS', key('queue', model, class)) == 1 then
      local before = #taken
      for _, range in ipairs(unread_ranges(priority)) do
        while read(model, priority, range) do end
      end
      if #taken > before then
        tell_group(model, priority)
      end
    end
  end
end
return remember('read_new', number, taken)
