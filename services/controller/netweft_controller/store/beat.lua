-- Records heartbeats at the store's time. KEYS: 1 heartbeats. ARGV: host ids.
local time = redis.call('TIME')
local now = string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000))
for _, host in ipairs(ARGV) do redis.call('HSET', KEYS[1], host, now) end
return {now, redis.call('HGETALL', KEYS[1])}
