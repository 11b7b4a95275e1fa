-- Ends a rebuild. Answers 0 if the server was wiped since it began, which took its mark away.
--
-- KEYS[1] epoch
-- KEYS[2] mark_key
-- ARGV[1] mark
local epoch, mark_key, mark = KEYS[1], KEYS[2], ARGV[1]
if redis.call('DEL', mark_key) == 0 then return 0 end
redis.call('SET', epoch, mark, 'NX')
return 1
