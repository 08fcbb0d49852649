-- Notes heartbeats. Of each: ARGV[3] host, [4] how long it may be silent (ms), and so on. Returns the time, and of each host
-- whether it has reported under the epoch.
window()
local answer = { now }
for index = 3, #ARGV, 2 do
  local host = ARGV[index]
  call('ZADD', BEATS, 'GT', now + tonumber(ARGV[index + 1]), host)
  call('ZADD', LIVE, 'XX', 'GT', now, host)
  answer[#answer + 1] = call('SISMEMBER', ASSERTED, host)
end
return answer
