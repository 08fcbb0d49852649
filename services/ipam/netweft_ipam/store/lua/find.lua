-- Finds a pool in the registry.
-- ARGV[2] request id that would end it ('' none), [3] fingerprint, [4] name. Returns code and the record.
if ARGV[2] ~= '' then
  local known = call('GET', TAG .. ':req:' .. ARGV[2])
  if known then
    if sub(known, 1, #ARGV[3]) ~= ARGV[3] then return { 'REUSED' } end
    return { 'DONE' }
  end
end
local record = call('HGET', P, ARGV[4])
if not record then return { 'UNKNOWN' } end
return { 'OK', record }
