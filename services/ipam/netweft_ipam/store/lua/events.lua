-- Reads the stream of what happened.
-- ARGV[5] range of the pool, [6] `back` or `on`, [7] id to begin at or '', [8] entries at most.
-- Returns code, entries (id, packed), hosts (index, renewed, name of each that is still known).
local meta = call('HMGET', M, 'g', 'p:' .. ARGV[5])
if not (meta[1] and meta[2]) then return { 'NOPOOL' } end
local entries
if ARGV[6] == 'back' then
  entries = call('XREVRANGE', E, ARGV[7] == '' and '+' or ARGV[7], '-', 'COUNT', ARGV[8])
else
  entries = call('XRANGE', E, ARGV[7] == '' and '-' or ARGV[7], '+', 'COUNT', ARGV[8])
end
local out, names = {}, {}
for index, entry in ipairs(entries) do
  local packed = entry[2][2]
  out[#out + 1] = entry[1]
  out[#out + 1] = packed
  local at = 1
  while at <= #packed do
    local first, key_len, _, host = sunpack('>BBI2I4', packed, at + 1 + W)
    if host > 0 and hosts[host] == nil then
      local known = host_at(host)
      if known then
        names[#names + 1] = known.index
        names[#names + 1] = known.renewed
        names[#names + 1] = known.name
      end
    end
    at = at + 1 + W + HEAD_BYTES + key_len + 1 + (first >= 128 and TTL_BYTES or 0)
  end
end
return { 'OK', out, names }
