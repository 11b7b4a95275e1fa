-- Renews the lease of an attempt. Answers 1 while the job is still this attempt's.
--
-- KEYS[1] job
-- KEYS[2] lease
-- ARGV[1] value               of the lease
-- ARGV[2] attempt
-- ARGV[3] milliseconds
local job, lease_key = KEYS[1], KEYS[2]
local value, attempt, milliseconds = unpack(ARGV)
local lease = redis.call('GET', lease_key)
-- A rebuild grants leases under a token of its own, since the worker's was wiped.
if lease == value or lease == attempt .. ':rebuilt' then
  redis.call('SET', lease_key, value, 'PX', milliseconds)
  return 1
end
if lease then return 0 end
local status, shown_attempt = unpack(redis.call('HMGET', job, 'status', 'attempt'))
-- Wiped, or late but not yet noticed: the lease can be had again. Otherwise the job was taken away.
if not status or (status == 'running' and shown_attempt == attempt) then
  redis.call('SET', lease_key, value, 'PX', milliseconds)
  return 1
end
return 0
