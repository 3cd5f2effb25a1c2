-- Put in front of every script under leader/, after common.lua, so that none can forget it: ARGV[1] is the pool and
-- ARGV[2] the caller's fencing token, and an older token than the pool's newest changes nothing.
local pool, token = ARGV[1], tonumber(ARGV[2])
do
  local newest = tonumber(redis.call('HGET', key('pool', pool), 'token'))
  if newest ~= token then
    return redis.error_reply('STALELEADER token ' .. ARGV[2] .. ' of pool ' .. pool)
  end
end

-- The job's state while this pool holds it and it has not ended; else nil.
local function state_if_ours(job_id)
  local state, owner = unpack(redis.call('HMGET', key('job', job_id), 'state', 'pool'))
  if state and owner == pool and not has_ended(state) then
    return state
  end
end

-- Make this pool the owner of a stream entry just delivered to it. Returns its job, or nil, acknowledged, when that has
-- ended, or its record is lost.
local function take(stream, entry)
  local job_id = entry[2][2]
  local job = key('job', job_id)
  local state = redis.call('HGET', job, 'state')
  if not state or has_ended(state) then
    redis.call('XACK', stream, GROUP, entry[1])
    if not state then
      forget_lost(job_id)
    end
    return nil
  end
  redis.call('HSET', job, 'pool', pool)
  return job_id
end

-- A read whose reply was lost is repeated with the same number, and must find the same jobs again, not the next ones.
local function recall(kind, number)
  local last = redis.call('HMGET', key('last_read', pool), kind .. ':number', kind .. ':jobs')
  if last[1] ~= number then
    return nil
  end
  local jobs = {}
  for job_id in string.gmatch(last[2], '%S+') do
    if state_if_ours(job_id) then
      table.insert(jobs, snapshot(job_id))
    end
  end
  return jobs
end

local function remember(kind, number, job_ids)
  if #job_ids == 0 then
    return {} -- nothing to find again, and a leader with nothing to do would write to disk at every poll
  end
  redis.call('HSET', key('last_read', pool), kind .. ':number', number, kind .. ':jobs', table.concat(job_ids, ' '))
  local jobs = {}
  for index, job_id in ipairs(job_ids) do
    jobs[index] = snapshot(job_id)
  end
  return jobs
end
