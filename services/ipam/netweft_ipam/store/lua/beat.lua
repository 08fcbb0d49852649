-- Notes a host's heartbeat. ARGV[3] host, [4] how long it may be silent (ms). Returns the time, and whether it has reported under the epoch.
window()
call('ZADD', BEATS, 'GT', now + tonumber(ARGV[4]), ARGV[3])
call('ZADD', LIVE, 'XX', 'GT', now, ARGV[3])
return { now, call('SISMEMBER', ASSERTED, ARGV[3]) }
