-- Answers how many callbacks there are, how many are due, and for how long the first has been (ms).
--
-- KEYS[1] callbacks
local callbacks = KEYS[1]
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local first = redis.call('ZRANGE', callbacks, 0, 0, 'WITHSCORES')
local overdue = 0
if first[2] then overdue = math.max(now - tonumber(first[2]), 0) end
return {redis.call('ZCARD', callbacks), redis.call('ZCOUNT', callbacks, '-inf', now), overdue}
