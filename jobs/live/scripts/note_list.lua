-- A list of messages is about to get one.
-- KEYS[1] lists
-- ARGV[1] name

redis.call('ZADD', KEYS[1], redis.call('TIME')[1], ARGV[1])
