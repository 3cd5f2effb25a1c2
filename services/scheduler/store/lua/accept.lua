-- Accept a request durably: what this returns is never lost.
-- ARGV: job id, request id among those of all callers ('' for none), digest, request JSON, number of images, model,
--       priority number, timeout ms, abandonable (1 or 0), follower lease ms, most waiting jobs of a model, traceparent
--       ('' for none), caller ('' for an anonymous one), its cost in row-calls, the caller's bound of each of
--       COUNTS (0: none)
-- Returns the job id: the one given, or that of the job which this request_id already made.
-- Errors: ALREADYEXISTS, QUEUEFULL, OVERQUOTA with the count's name and what it is
local job_id, request_id, digest, request_json = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local num_images, model, priority, timeout_ms = ARGV[5], ARGV[6], tonumber(ARGV[7]), tonumber(ARGV[8])
local abandonable, lease_ms, most_waiting, traceparent = ARGV[9], tonumber(ARGV[10]), tonumber(ARGV[11]), ARGV[12]
local caller, cost = ARGV[13], tonumber(ARGV[14])
local now = now_ms()

local known = request_id == '' and job_id or redis.call('GET', key('request', request_id))
if known and redis.call('EXISTS', key('job', known)) == 1 then
  if redis.call('HGET', key('job', known), 'digest') ~= digest then
    return redis.error_reply('ALREADYEXISTS job ' .. known)
  end
  if abandonable == '1' then
    redis.call('ZADD', key('leases'), 'XX', 'GT', now + lease_ms, known)
  else
    redis.call('HSET', key('job', known), 'abandonable', 0)  -- submitted as well: it outlives its followers
    redis.call('ZREM', key('leases'), known)
  end
  return known
end

local waiting = key('waiting', model)
restore_streams(model)
restore_waiting(model)
restore_deadlines()
restore_leases(lease_ms)
if redis.call('ZCARD', waiting) - 1 >= most_waiting then  -- one of them is the keeper
  return redis.error_reply('QUEUEFULL ' .. most_waiting .. ' jobs wait')
end

restore_callers()
for index, name in ipairs(COUNTS) do
  local bound = tonumber(ARGV[14 + index])
  local has = bound > 0 and tonumber(redis.call('HGET', key('callers'), caller .. ' ' .. name) or 0)
  if has and has + (string.find(name, 'images') and num_images or 1) > bound then
    return redis.error_reply('OVERQUOTA ' .. name .. ' ' .. has)
  end
end

local class = PRIORITIES[priority]
local entry_id = redis.call('XADD', key('queue', model, class), '*', 'job', job_id)
local deadline = now + timeout_ms

redis.call('HSET', key('job', job_id),
  'state', 'QUEUED', 'request', request_json, 'request_id', request_id, 'digest', digest, 'num_images', num_images,
  'model', model, 'priority', class, 'entry_id', entry_id, 'accepted_at_ms', now, 'deadline_ms', deadline,
  'abandonable', abandonable, 'sequence', 0, 'traceparent', traceparent, 'caller', caller,
  'cost', cost)
if request_id ~= '' then
  redis.call('SET', key('request', request_id), job_id)
end
count(caller, 'waiting', num_images, 1)
count(caller, 'open', num_images, 1)
redis.call('ZADD', key('deadlines'), deadline, job_id)
if abandonable == '1' then
  redis.call('ZADD', key('leases'), now + lease_ms, job_id)
end
local rank, start = next_rank(model, priority, caller, cost)
redis.call('ZADD', waiting, rank, job_id)
redis.call('HSET', key('job', job_id), 'start', start)
add_event(job_id, 'position', redis.call('ZRANK', waiting, job_id))
redis.call('PUBLISH', key('accepted'), model)
return job_id
