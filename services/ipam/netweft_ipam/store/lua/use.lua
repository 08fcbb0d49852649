-- Counts a pool's use. ARGV[5] range. Returns code, held and resting through it, when the next address stops resting, held
-- and resting in the family.
local meta = call('HMGET', M, 'g', 'p:' .. ARGV[5])
local pool = meta[1] and pool_entry(meta[2])
if not pool then return { 'NOPOOL' } end
local counts = call('HMGET', M, 'n' .. pool, 'q' .. pool, 'n', 'q')
local next_rest = call('ZRANGE', Q, 0, 0, 'WITHSCORES')
return {
  'OK', tonumber(counts[1] or 0), tonumber(counts[2] or 0), tonumber(next_rest[2] or 0),
  tonumber(counts[3] or 0), tonumber(counts[4] or 0),
}
