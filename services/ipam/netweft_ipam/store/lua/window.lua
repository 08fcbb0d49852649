-- Tells how far the hosts have reported under a store epoch. ARGV[3] hosts are waited for that were heard of so long before
-- the newest heartbeat under the last epoch, or later (ms), then 2 of each host that the caller has seen: name, its last
-- heartbeat (ms).
-- Returns the time, when the epoch was first seen, live hosts, live hosts that have not reported (at most 100).
local since, newest = window()
for index = 4, #ARGV, 2 do call('ZADD', LIVE, 'GT', ARGV[index + 1], ARGV[index]) end
local live = call('ZRANGEBYSCORE', LIVE, newest - tonumber(ARGV[3]), '+inf')
local missing = {}
for _, host in ipairs(live) do
  if #missing < 100 and call('SISMEMBER', ASSERTED, host) == 0 then missing[#missing + 1] = host end
end
return { now, since, #live, missing }
