-- Notes that a host has reported all it holds. ARGV[3] host. Returns the time.
window()
call('ZADD', BEATS, 'GT', now, ARGV[3])
call('ZADD', LIVE, 'GT', now, ARGV[3])
call('SADD', ASSERTED, ARGV[3])
call('EXPIRE', ASSERTED, WEEK)
return { now }
