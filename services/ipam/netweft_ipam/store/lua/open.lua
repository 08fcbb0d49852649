-- Makes a pool of the family ready, as the registry of its address space says. Idempotent.
-- ARGV[5] the family's generation, [6] the pool's, [7] range, [8] leases at most or ''. Returns code.
if call('EXISTS', TAG .. ':gone:' .. ARGV[6]) == 1 then return { 'GONE' } end
local meta = call('HMGET', M, 'g', 'p:' .. ARGV[7])
if meta[1] ~= ARGV[5] then
  -- What stands here was left by a call that came after the family's end: the registry is the truth.
  if meta[1] then remove_all() end
  -- Epochs start from the clock, so they grow even over the family's end and over a lost tail of the log.
  -- Not confirmed on any history: hosts may hold addresses of an earlier life that the server has lost.
  call('HSET', M, 'g', ARGV[5], 'inc', '', 'ep', floor(now / 1000) * 65536)
  meta[2] = false
end
local _, generation = pool_entry(meta[2])
if generation then
  if generation == ARGV[6] then return { 'OK' } end
  call('HINCRBY', M, 'pc', -1)
end
local index = call('HINCRBY', M, 'px', 1)
if index > 65535 then return { 'CROWDED' } end
call('HINCRBY', M, 'pc', 1)
call('HSET', M, 'p:' .. ARGV[7], index .. ':' .. ARGV[6] .. ':' .. ARGV[8], 'i:' .. index, ARGV[7])
return { 'OK' }
