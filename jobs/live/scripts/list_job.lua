-- Adds a job that is shown to the lists that an earlier version did not keep. Answers 0 if it is not shown any more.
--
-- KEYS[1] job
-- KEYS[2] delays
-- KEYS[3] references
-- ARGV[1] job_id
-- ARGV[2] delay_ms
-- ARGV[3] reference_member    or ''
local job, delays, references = KEYS[1], KEYS[2], KEYS[3]
local job_id, delay_ms, reference_member = unpack(ARGV)
if redis.call('EXISTS', job) == 0 then return 0 end
redis.call('ZADD', delays, delay_ms, job_id)
if reference_member ~= '' then redis.call('ZADD', references, 0, reference_member) end
return 1
