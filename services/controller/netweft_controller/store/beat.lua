-- Records heartbeats at the store's time. KEYS: 1 heartbeats. ARGV: host id, revision that its kernel follows, and so on.
local time = redis.call('TIME')
local now = string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000))
for i = 1, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], now .. ' ' .. ARGV[i + 1]) end
return {now, redis.call('HGETALL', KEYS[1])}
