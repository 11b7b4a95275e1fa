-- What is shown of some jobs. Answers {rows, is_whole}: a row for each job has its state, whether to cancel it, and for
-- each queue how many jobs are not behind it and how many there are (0 unless it is queued). A view that is not whole
-- was wiped.
--
-- KEYS[1...]    jobs, in the order of their ids; then the queues by priority; then the epoch
-- ARGV[1...]    ids of the jobs
local epoch = KEYS[#KEYS]
local rows = {}
for i, job_id in ipairs(ARGV) do
  local state, cancel, status = unpack(redis.call('HMGET', KEYS[i], 'state', 'cancel', 'status'))
  local row = {state, cancel}
  for queue = #ARGV + 1, #KEYS - 1 do
    local is_queued = status == 'queued'
    row[#row + 1] = is_queued and redis.call('ZLEXCOUNT', KEYS[queue], '-', '[' .. job_id) or 0
    row[#row + 1] = is_queued and redis.call('ZCARD', KEYS[queue]) or 0
  end
  rows[i] = row
end
return {rows, redis.call('EXISTS', epoch)}
