-- Says that nothing of the family was lost with the last change of server, or that all hosts have reported it.
-- ARGV[5] the server's history as the caller saw it. Returns code.
local server = CHECK and history() or 'unchecked'
if server ~= ARGV[5] then return { 'STALE', server } end
local meta = call('HMGET', M, 'g', 'ep', 'inc')
-- Epochs from here on are above all that were given out in the part of the log that may be lost, so that whoever reports
-- one of those later never wins against a new owner.
if meta[1] and server ~= meta[3] then
  call('HSET', M, 'inc', server, 'ep', max(tonumber(meta[2]) + 1048576, floor(now / 1000) * 65536))
end
return { 'OK' }
