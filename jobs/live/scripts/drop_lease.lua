-- Ends a lease, if it is still this one: after an expiry another worker may hold it.
--
-- KEYS[1] lease
-- ARGV[1] value
local lease, value = KEYS[1], ARGV[1]
if redis.call('GET', lease) == value then return redis.call('DEL', lease) end
return 0
