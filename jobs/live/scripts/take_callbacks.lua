-- Takes jobs whose callbacks are due. Answers their ids; nobody else gets them for a while.
--
-- KEYS[1] callbacks           by the time at which they are due
-- ARGV[1] count               at most
-- ARGV[2] milliseconds        until one that its sender lost is due again
local callbacks = KEYS[1]
local count, milliseconds = unpack(ARGV)
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local due = redis.call('ZRANGE', callbacks, '-inf', now, 'BYSCORE', 'LIMIT', 0, count)
for _, job_id in ipairs(due) do redis.call('ZADD', callbacks, now + milliseconds, job_id) end
return due
