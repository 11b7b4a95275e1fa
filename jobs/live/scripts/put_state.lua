-- Shows a state of a job, and in the same step its order in lists, its event, its change in the feed, its callback and
-- what it counts for.
-- Answers 1, or 0 if nothing was changed: the job has ended, a later attempt runs, it was deleted, or `guard` forbids it.
--
-- KEYS[1] job
-- KEYS[2] lease
-- KEYS[3] events
-- KEYS[4] metrics
-- KEYS[5] tombstone
-- KEYS[6] feed
-- KEYS[7] at_work              prefixes of the tenants that may have open jobs
-- ARGV[1] prefix              of all keys of the job's tenant
-- ARGV[2] job_id
-- ARGV[3] priority
-- ARGV[4] status
-- ARGV[5] attempt
-- ARGV[6] state               JSON
-- ARGV[7] guard               free: only if it runs without a lease; new: only if unknown; rebuild:{mark}: only if unknown
--                             and not wiped since the mark; any; or the value of the lease that must be held
-- ARGV[8] severity_member     of the list by severity, or ''
-- ARGV[9] retry_after_ms      or ''
-- ARGV[10] events_kept
-- ARGV[11] events_kept_ms
-- ARGV[12] channel
-- ARGV[13] has_callback       1 if somebody wants to be told of its end
-- ARGV[14] not_after_ms       of a job that no worker has begun, or ''
-- ARGV[15] delay_ms           how long after the moment in its id the job was created
-- ARGV[16] reference_member   of the list by reference, or ''
-- ARGV[17] feed_events        kept
-- ARGV[18] feed_ms            for which they are kept
-- ARGV[19] batch_id           that the job came in, or ''
-- ARGV[20...]                 metrics and by how much they grow at the job's end, in pairs
local job, lease_key, events, metrics, tombstone, feed, at_work = unpack(KEYS)
local prefix, job_id, priority, status, attempt, state, guard = unpack(ARGV, 1, 7)
local severity_member, retry_after_ms, events_kept, events_kept_ms, channel, has_callback, not_after_ms = unpack(ARGV, 8, 14)
local delay_ms, reference_member, feed_events, feed_ms, batch_id = unpack(ARGV, 15, 19)

local function is_final(name) return name == 'succeeded' or name == 'failed' or name == 'cancelled' end

local old_status, old_attempt = unpack(redis.call('HMGET', job, 'status', 'attempt'))
local lease = redis.call('GET', lease_key)
-- What workers that do not know of a deletion still say must not bring the job back.
if redis.call('EXISTS', tombstone) == 1 then return 0 end
-- An end that a client was told stays, and an attempt is never replaced by an earlier one.
if is_final(old_status) then return 0 end
if not is_final(status) and old_attempt and tonumber(old_attempt) > tonumber(attempt) then return 0 end
local is_new = guard == 'new' or string.sub(guard, 1, 8) == 'rebuild:'
if guard == 'free' then
  if lease or old_status ~= 'running' then return 0 end
elseif is_new then
  -- The mark of a rebuild goes with a wipe: what was read from the blobs before it is older than what is shown since.
  if old_status or guard ~= 'new' and redis.call('EXISTS', prefix .. guard) == 0 then return 0 end
elseif guard ~= 'any' and guard ~= lease then
  return 0
end

redis.call('HSET', job, 'status', status, 'attempt', attempt, 'state', state)
if old_status ~= status then
  local t = redis.call('TIME')
  local now = t[1] * 1000 + math.floor(t[2] / 1000)
  redis.call('HSET', job, 'since_ms', now)
  redis.call('HDEL', job, 'published_ms', 'retry_ms')
  if is_final(status) and has_callback == '1' then redis.call('ZADD', prefix .. 'callbacks', 'NX', now, job_id) end
  if is_final(status) and batch_id ~= '' then
    local open_jobs = prefix .. 'batch:' .. batch_id
    -- The last job of a batch that wants to tell of its end, for only such a one is watched.
    if redis.call('SREM', open_jobs, job_id) == 1 and redis.call('EXISTS', open_jobs) == 0 then
      redis.call('ZADD', prefix .. 'callbacks', 'NX', now, 'batch:' .. batch_id)
    end
  end
  if not_after_ms ~= '' then
    redis.call('ZADD', prefix .. 'deadlines', not_after_ms, job_id)
  else
    redis.call('ZREM', prefix .. 'deadlines', job_id)
  end
  if retry_after_ms ~= '' then redis.call('HSET', job, 'retry_ms', now + tonumber(retry_after_ms)) end
  -- Not while a wiped view is rebuilt: no cursor leads there, and each job that there is would be told anew.
  if redis.call('EXISTS', prefix .. 'epoch') == 1 then
    local types = {}
    if not old_status then types[1] = 'created' end
    if old_status or status ~= 'queued' then types[#types + 1] = status end
    for _, kind in ipairs(types) do
      -- Each names the one before it, so that a reader can tell whether some were dropped in between.
      local last = redis.call('XREVRANGE', feed, '+', '-', 'COUNT', 1)[1]
      local prev = last and last[1] or '0-0'
      redis.call('XADD', feed, 'MAXLEN', '~', feed_events, '*', 'job', job_id, 'type', kind, 'prev', prev)
    end
    redis.call('XTRIM', feed, 'MINID', '~', now - feed_ms)
    redis.call('PUBLISH', feed, job_id)
  end
  for _, list in ipairs({'*', priority}) do
    if old_status then redis.call('ZREM', prefix .. 'index:' .. old_status .. ':' .. list, job_id) end
    redis.call('ZADD', prefix .. 'index:' .. status .. ':' .. list, 0, job_id)
    redis.call('ZADD', prefix .. 'index:*:' .. list, 0, job_id)
    if severity_member ~= '' then redis.call('ZADD', prefix .. 'severity:' .. list, 0, severity_member) end
  end
  -- So that those who tell a job its place in the queue need look at no tenant that has nothing to do.
  if not is_final(status) then
    redis.call('SADD', at_work, prefix)
  else
    local open_jobs = 0
    for _, name in ipairs({'queued', 'running'}) do
      open_jobs = open_jobs + redis.call('ZCARD', prefix .. 'index:' .. name .. ':*')
    end
    if open_jobs == 0 then redis.call('SREM', at_work, prefix) end
  end
  redis.call('ZADD', prefix .. 'delays', delay_ms, job_id)
  if reference_member ~= '' then redis.call('ZADD', prefix .. 'references', 0, reference_member) end
end
if is_final(status) then
  redis.call('DEL', lease_key)
  -- A job that a rebuild brings back was counted when it ended.
  if not is_new then
    for i = 20, #ARGV, 2 do redis.call('HINCRBY', metrics, ARGV[i], ARGV[i + 1]) end
  end
end
local cancel = redis.call('HGET', job, 'cancel') or ''
redis.call('XADD', events, 'MAXLEN', '~', events_kept, '*', 'state', state, 'cancel', cancel)
redis.call('PEXPIRE', events, events_kept_ms)
redis.call('PUBLISH', channel, job_id)
return 1
