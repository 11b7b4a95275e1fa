-- Remembers for a while that a job was deleted, so that nothing is shown of it any more, and tells the feed. For its
-- batch it has ended.
--
-- KEYS[1] job
-- KEYS[2] tombstone
-- KEYS[3] feed
-- ARGV[1] prefix              of all keys
-- ARGV[2] job_id
-- ARGV[3] seconds
-- ARGV[4] feed_events
-- ARGV[5] feed_ms
local job, tombstone, feed = KEYS[1], KEYS[2], KEYS[3]
local prefix, job_id, seconds, feed_events, feed_ms = unpack(ARGV)
local is_told = redis.call('EXISTS', tombstone) == 1 and redis.call('EXISTS', job) == 0
redis.call('SET', tombstone, '1', 'EX', seconds)
if is_told then return 0 end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local state = redis.call('HGET', job, 'state')
local batch_id = state and cjson.decode(state).batch_id
if type(batch_id) == 'string' then
  local open_jobs = prefix .. 'batch:' .. batch_id
  if redis.call('SREM', open_jobs, job_id) == 1 and redis.call('EXISTS', open_jobs) == 0 then
    redis.call('ZADD', prefix .. 'callbacks', 'NX', now, 'batch:' .. batch_id)
  end
end
local last = redis.call('XREVRANGE', feed, '+', '-', 'COUNT', 1)[1]
local prev = last and last[1] or '0-0'
redis.call('XADD', feed, 'MAXLEN', '~', feed_events, '*', 'job', job_id, 'type', 'purged', 'prev', prev)
redis.call('XTRIM', feed, 'MINID', '~', now - feed_ms)
redis.call('PUBLISH', feed, job_id)
return 1
