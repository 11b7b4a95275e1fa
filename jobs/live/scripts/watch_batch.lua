-- Remembers which jobs of a batch are not finished, so that the end of the last one makes its callback due. Answers how
-- many there are, as far as is shown.
--
-- KEYS[1] open_jobs
-- ARGV[1] prefix              of all keys
-- ARGV[2] milliseconds        for which it is remembered
-- ARGV[3...]                  ids of the jobs that were not finished when last seen
local open_jobs = KEYS[1]
local prefix, milliseconds = unpack(ARGV, 1, 2)
redis.call('DEL', open_jobs)
for i = 3, #ARGV do
  local status = redis.call('HGET', prefix .. 'job:' .. ARGV[i], 'status')
  local is_final = status == 'succeeded' or status == 'failed' or status == 'cancelled'
  -- One that has ended since it was seen would never leave.
  if not is_final and redis.call('EXISTS', prefix .. 'purged:' .. ARGV[i]) == 0 then
    redis.call('SADD', open_jobs, ARGV[i])
  end
end
redis.call('PEXPIRE', open_jobs, milliseconds)
return redis.call('SCARD', open_jobs)
