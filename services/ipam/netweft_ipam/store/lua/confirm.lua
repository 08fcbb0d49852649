-- Says that nothing of the family was lost with the last change of server, or that all hosts have reported it.
-- ARGV[5] the server's history as the caller saw it. Returns code.
local server = history()
if server ~= ARGV[5] then return { 'STALE', server } end
local meta = call('HMGET', M, 'g', 'ep')
if meta[1] then call('HSET', M, 'inc', server, 'ep', max(tonumber(meta[2]), floor(now / 1000) * 65536)) end
return { 'OK' }
