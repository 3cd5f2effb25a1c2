-- Put after common.lua: the order in which the jobs of a model are read. By priority class, then fairly between callers.
--
-- Start-time fair queueing (Goyal, Vin, Cheng 1996). A job starts, in virtual time, where its caller's last job ends, but
-- not before the start of the job that began last; it ends its cost later. Jobs are read by their starts. So callers
-- that have jobs waiting get equal shares of the work read, whatever they send, and one caller's jobs stay in order.
--
-- The score of a job in `waiting`: its class times BAND, and within it its start, past READ once a pool has read it and
-- past UNREAD before. Below READ are the scores of versions that counted arrivals. Lua's numbers, and Redis' scores, are
-- exact to 2^-11 here, and a start reaches READ after 10^11 row-calls without an empty queue.
local BAND, READ, UNREAD = 2 ^ 40, 2 ^ 38, 2 ^ 39

-- Those of a class that no pool has read: how many, or with `limit` which. The first range is of older versions.
local function unread_ranges(priority)
  return {{priority * BAND, priority * BAND + READ - 1}, {priority * BAND + UNREAD, (priority + 1) * BAND - 1}}
end

local function unread_count(model, priority)
  local count = 0
  for _, range in ipairs(unread_ranges(priority)) do
    count = count + redis.call('ZCOUNT', key('waiting', model), range[1], range[2])
  end
  return count
end

-- The latest start of a class that is left in `waiting`, where the virtual time is lost; nil without a job.
local function latest_start(model, priority)
  local base = priority * BAND
  local score = redis.call(
    'ZREVRANGEBYSCORE', key('waiting', model), base + BAND - 1, base, 'WITHSCORES', 'LIMIT', 0, 1)[2]
  return score and (score - base) % READ
end

-- The rank of a new job. `cost`: its share of a device, in row-calls. Returns its start as well.
local function next_rank(model, priority, caller, cost)
  local turns, mine = key('turns', model, PRIORITIES[priority]), 'of ' .. caller
  local now, last, ending = unpack(redis.call('HMGET', turns, 'now', mine, 'end'))
  local latest = latest_start(model, priority)
  if not now then
    now = (latest or -1) + 1
  elseif not latest then  -- no job waits: earlier shares do not matter any more
    redis.call('DEL', turns)
    now, last = tonumber(ending) < READ / 2 and ending or 0, 0
  end
  local start = math.max(tonumber(now), tonumber(last or 0))
  local finish = start + math.max(cost, 2 ^ -8)
  redis.call('HSET', turns, 'now', now, mine, finish, 'end', math.max(finish, tonumber(ending or 0)))
  return priority * BAND + UNREAD + start, start
end

-- Whether a queue in which so many wait takes a job of the caller. A full one takes up to a tenth more, of named callers
-- that have less than a hundredth of it: a flood that fills it is not to keep others out.
local function takes_from(caller, waiting, most)
  if waiting < most or caller == '' then
    return waiting < most
  end
  local has = tonumber(redis.call('HGET', key('callers'), caller .. ' waiting_jobs') or 0)
  return waiting < 1.1 * most and has < most / 100
end

-- A pool has read a job.
local function mark_read(model, priority, job_id, score)
  local start = (score - priority * BAND) % READ
  redis.call('ZADD', key('waiting', model), priority * BAND + READ + start, job_id)
end

-- Tell the consumer group how far the stream is read: every entry up to its last-delivered id is, and its lag is the
-- number of jobs that are not. Jobs are not read in the order of their entries, so no command of Redis does this.
local function tell_group(model, priority)
  local stream, info = key('queue', model, PRIORITIES[priority]), {}
  for _, reply in ipairs({redis.call('XINFO', 'STREAM', stream), redis.call('XINFO', 'GROUPS', stream)[1]}) do
    for index = 1, #reply, 2 do
      info[reply[index]] = reply[index + 1]
    end
  end
  local last, going = info['last-delivered-id'], true
  while going do
    local entries = redis.call('XRANGE', stream, '(' .. last, '+', 'COUNT', 100)
    going = #entries > 0
    for _, entry in ipairs(entries) do
      local state, pool = unpack(redis.call('HMGET', key('job', entry[2][2]), 'state', 'pool'))
      if state and not has_ended(state) and not pool then
        going = false
        break
      end
      last = entry[1]
    end
  end
  local read = math.max(0, info['entries-added'] - unread_count(model, priority))
  if last ~= info['last-delivered-id'] or read ~= info['entries-read'] then
    redis.call('XGROUP', 'SETID', stream, GROUP, last, 'ENTRIESREAD', read)
  end
  return last
end
