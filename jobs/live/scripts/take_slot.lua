-- Whether one more job of a tenant may run. It counts from now on, until its state shows that it runs, or has ended.
--
-- KEYS[1] running             the tenant's
-- KEYS[2] slots               jobs just taken, by when that is forgotten
-- ARGV[1] prefix              of the keys of its jobs
-- ARGV[2] job_id
-- ARGV[3] limit
-- ARGV[4] milliseconds        for which a job that nobody begins counts
local running, slots = unpack(KEYS)
local prefix, job_id, limit, milliseconds = unpack(ARGV)
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('ZREMRANGEBYSCORE', slots, '-inf', now)
for _, taken in ipairs(redis.call('ZRANGE', slots, 0, -1)) do
    if redis.call('HGET', prefix .. taken, 'status') ~= 'queued' then redis.call('ZREM', slots, taken) end
end
local count = redis.call('ZCARD', running) + redis.call('ZCARD', slots)
if not redis.call('ZSCORE', slots, job_id) and count >= tonumber(limit) then return 0 end
redis.call('ZADD', slots, now + milliseconds, job_id)
return 1
