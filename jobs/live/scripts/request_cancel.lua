-- Notes that somebody asked to stop a job, and tells those who watch it. Answers 0 if it is unknown or was asked before.
--
-- KEYS[1] job
-- KEYS[2] events
-- ARGV[1] job_id
-- ARGV[2] events_kept
-- ARGV[3] events_kept_ms
-- ARGV[4] channel
local job, events = KEYS[1], KEYS[2]
local job_id, events_kept, events_kept_ms, channel = unpack(ARGV)
local state = redis.call('HGET', job, 'state')
if not state or redis.call('HGET', job, 'cancel') == '1' then return 0 end
redis.call('HSET', job, 'cancel', '1')
redis.call('XADD', events, 'MAXLEN', '~', events_kept, '*', 'state', state, 'cancel', '1')
redis.call('PEXPIRE', events, events_kept_ms)
redis.call('PUBLISH', channel, job_id)
return 1
