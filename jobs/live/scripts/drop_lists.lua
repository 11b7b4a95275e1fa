-- Forgets lists that are empty and got their last message long ago; how many.
-- In one step: between a look at the list and its removal nobody can put a message in.
-- KEYS[1] lists
-- ARGV[1] seconds

local oldest = redis.call('TIME')[1] - ARGV[1]
local dropped = 0
for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', oldest)) do
    if redis.call('EXISTS', name) == 0 then
        dropped = dropped + redis.call('ZREM', KEYS[1], name)
    end
end
return dropped
