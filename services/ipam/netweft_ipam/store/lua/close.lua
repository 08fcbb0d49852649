-- Ends a pool of the family unless leases stand in the way; the last one takes everything with it. Idempotent.
-- ARGV[5] range, [6] the pool's generation, [7] 1: leases of gateways and auxiliary addresses go too, [8] quarantine.
-- Returns code, and how many leases stand in the way.
--
-- The end of a pool is decided here and is final for its generation: the registry follows, whoever gets to it.
local gone = TAG .. ':gone:' .. ARGV[6]
local pool, generation = pool_entry(call('HGET', M, 'p:' .. ARGV[5]))
if generation ~= ARGV[6] then
  call('SET', gone, '', 'EX', DAY)
  return { 'OK' }
end
local counts = call('HMGET', M, 'n' .. pool, 'g' .. pool, 'pc')
local held, infrastructure = tonumber(counts[1] or 0), tonumber(counts[2] or 0)
if ARGV[7] ~= '1' then infrastructure = 0 end
if held > infrastructure then return { 'HELD', held - infrastructure } end
if tonumber(counts[3]) <= 1 then
  remove_all()
  call('SET', gone, '', 'EX', DAY)
  return { 'OK' }
end
if held > 0 then
  for _, name in ipairs(call('HKEYS', R)) do
    for slot, record in pairs(load_block(name)) do
      local lease = decode(record)
      if lease.held and lease.pool == pool then release(name .. fmt('%x', slot), lease, tonumber(ARGV[8]), RELEASED) end
    end
  end
  flush()
end
call('HDEL', M, 'p:' .. ARGV[5], 'i:' .. pool, 'n' .. pool, 'g' .. pool, 's' .. pool)
call('HINCRBY', M, 'pc', -1)
call('SET', gone, '', 'EX', DAY)
return { 'OK' }
