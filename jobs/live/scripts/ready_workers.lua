-- Removes the workers that fell silent, and notes one that is ready. Answers how many are.
--
-- KEYS[1] workers             by the time at which their announcement expires
-- ARGV[1] worker              or '' to count alone
-- ARGV[2] milliseconds        for which its announcement holds
local workers = KEYS[1]
local worker, milliseconds = unpack(ARGV)
-- Redis' own time, so that the clocks of workers need not agree.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('ZREMRANGEBYSCORE', workers, '-inf', now)
if worker ~= '' then redis.call('ZADD', workers, now + tonumber(milliseconds), worker) end
return redis.call('ZCARD', workers)
