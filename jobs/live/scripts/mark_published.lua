-- Notes when a message of a queued job was sent, so that it is not sent again too soon.
--
-- KEYS[1] job
local job = KEYS[1]
if redis.call('EXISTS', job) == 0 then return 0 end
local t = redis.call('TIME')
redis.call('HSET', job, 'published_ms', t[1] * 1000 + math.floor(t[2] / 1000))
redis.call('HDEL', job, 'retry_ms')
return 1
