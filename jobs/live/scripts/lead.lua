-- Makes a process the one that looks for lost jobs, or keeps it so. Answers 0 while another leads.
--
-- KEYS[1] leader
-- ARGV[1] who
-- ARGV[2] milliseconds        until its silence ends it
local leader_key = KEYS[1]
local who, milliseconds = unpack(ARGV)
local leader = redis.call('GET', leader_key)
if leader and leader ~= who then return 0 end
redis.call('SET', leader_key, who, 'PX', milliseconds)
return 1
