-- Makes a job's callback due after a while.
--
-- KEYS[1] callbacks
-- ARGV[1] job_id
-- ARGV[2] milliseconds
local callbacks = KEYS[1]
local job_id, milliseconds = unpack(ARGV)
local t = redis.call('TIME')
return redis.call('ZADD', callbacks, t[1] * 1000 + math.floor(t[2] / 1000) + milliseconds, job_id)
