-- What is shown of some jobs. Answers {rows, is_whole, now, ready, running, recent}: a row for each job has its state,
-- whether to cancel it, and for each queue how many jobs are not behind it and how many there are (0 unless it is
-- queued). A view that is not whole was wiped. The rest tells when a queued job may begin: the time (ms), how many
-- workers are ready, how many jobs run, and how long the last ones took (ms).
--
-- KEYS[1...]    jobs, in the order of their ids; then the queues by priority, the workers, the running jobs, the times
--               of recent jobs, and the epoch
-- ARGV[1...]    ids of the jobs
local workers, running, recent, epoch = unpack(KEYS, #KEYS - 3)
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local rows = {}
for i, job_id in ipairs(ARGV) do
  local state, cancel, status = unpack(redis.call('HMGET', KEYS[i], 'state', 'cancel', 'status'))
  local row = {state, cancel}
  for queue = #ARGV + 1, #KEYS - 4 do
    local is_queued = status == 'queued'
    row[#row + 1] = is_queued and redis.call('ZLEXCOUNT', KEYS[queue], '-', '[' .. job_id) or 0
    row[#row + 1] = is_queued and redis.call('ZCARD', KEYS[queue]) or 0
  end
  rows[i] = row
end
-- Their announcements are removed later.
local ready = redis.call('ZCOUNT', workers, '(' .. now, '+inf')
return {rows, redis.call('EXISTS', epoch), now, ready, redis.call('ZCARD', running), redis.call('LRANGE', recent, 0, -1)}
