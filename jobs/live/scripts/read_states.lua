-- What is shown of some jobs of a tenant. Answers {rows, is_whole, now, ready, running, recent}: a row for each job has
-- its state, whether to cancel it, and for each queue how many jobs of all tenants come no later than this one, and how
-- many there are (0 unless it is queued). A view that is not whole was wiped. The rest tells when a queued job may begin:
-- the time (ms), how many workers are ready, how many jobs of all tenants run (0 unless one of these is queued), and how
-- long the last ones took (ms).
--
-- Workers go round the tenants that wait. So a tenant's third job comes after two or three of each other one that has as
-- many: three where that one's third came earlier. That is looked up for so many others alone as `looked_at` says, since
-- Redis answers nobody meanwhile: of the rest it is taken for granted, so that a place is never promised too early.
--
-- KEYS[1...]    jobs, in the order of their ids; then the workers, the times of recent jobs, the epoch, and the prefixes
--               of the tenants that may have open jobs
-- ARGV[1...]    ids of the jobs; then the prefix of their tenant's keys, that of the default tenant's, and the
--               priorities, most urgent first
local count = #KEYS - 4
local workers, recent, epoch, at_work = unpack(KEYS, count + 1)
local own, default = ARGV[count + 1], ARGV[count + 2]
local priorities = {unpack(ARGV, count + 3)}
local looked_at = 16
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)

local function queue_of(prefix, priority) return prefix .. 'index:queued:' .. priority end

-- The others that wait, with the lengths of their queues; jobs in each queue; jobs that run.
local others, totals, running
local function look_at_all()
  others, totals, running = {}, {}, 0
  for i in ipairs(priorities) do totals[i] = 0 end
  -- The default one's jobs may come from a version that notes no tenants.
  local seen, prefixes = {}, redis.call('SMEMBERS', at_work)
  prefixes[#prefixes + 1] = default
  prefixes[#prefixes + 1] = own
  table.sort(prefixes)  -- so that the same ones are looked at each time
  for _, prefix in ipairs(prefixes) do
    if not seen[prefix] then
      seen[prefix] = true
      local lengths = {}
      for i, priority in ipairs(priorities) do
        lengths[i] = redis.call('ZCARD', queue_of(prefix, priority))
        totals[i] = totals[i] + lengths[i]
      end
      running = running + redis.call('ZCARD', prefix .. 'index:running:*')
      if prefix ~= own then others[#others + 1] = {prefix, lengths} end
    end
  end
end

local function place(i, job_id)
  local turn = redis.call('ZLEXCOUNT', queue_of(own, priorities[i]), '-', '[' .. job_id)
  local ahead = turn
  for n, other in ipairs(others) do
    local prefix, lengths = unpack(other)
    if lengths[i] < turn or n > looked_at then
      ahead = ahead + math.min(lengths[i], turn)
    else
      local older = redis.call('ZLEXCOUNT', queue_of(prefix, priorities[i]), '-', '[' .. job_id)
      ahead = ahead + (older >= turn and turn or turn - 1)
    end
  end
  return ahead
end

local rows = {}
for n = 1, count do
  local job_id = ARGV[n]
  local state, cancel, status = unpack(redis.call('HMGET', KEYS[n], 'state', 'cancel', 'status'))
  local row = {state, cancel}
  local is_queued = status == 'queued'
  if is_queued and not others then look_at_all() end
  for i, priority in ipairs(priorities) do
    local is_here = is_queued and redis.call('ZSCORE', queue_of(own, priority), job_id)
    row[#row + 1] = is_here and place(i, job_id) or 0
    row[#row + 1] = is_queued and totals[i] or 0
  end
  rows[n] = row
end
-- Their announcements are removed later.
local ready = redis.call('ZCOUNT', workers, '(' .. now, '+inf')
return {rows, redis.call('EXISTS', epoch), now, ready, running or 0, redis.call('LRANGE', recent, 0, -1)}
