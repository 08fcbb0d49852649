-- Lists leases of one pool in the order of addresses.
-- ARGV[5] range of the pool, [6] ref to continue after ('' from the start), [7] leases at most, [8] owner's key ('' all),
-- [9] its digest, [10] host ('' all).
-- Returns code, leases (ref and record, packed), hosts (index, renewed, name of each), ref to continue after or ''.
local meta = call('HMGET', M, 'g', 'p:' .. ARGV[5])
local pool = meta[1] and pool_entry(meta[2])
if not pool then return { 'NOPOOL' } end
local after, limit, key, wanted_host = ARGV[6], tonumber(ARGV[7]), ARGV[8], nil
if ARGV[10] ~= '' then
  local host = host_named(ARGV[10])
  if not host then return { 'OK', '', {}, '' } end
  wanted_host = host.index
end

local out, count, names, hosts_named = {}, 0, {}, {}
local function emit(ref, record)
  local first, _, its_pool, host = sunpack('>BBI2I4', record)
  if floor(first / 64) % 2 == 0 or its_pool ~= pool or (wanted_host and host ~= wanted_host) then return end
  count = count + 1
  out[#out + 1] = ref
  out[#out + 1] = record
  if host > 0 and not hosts_named[host] then
    hosts_named[host] = true
    local known = host_at(host)
    if known then
      names[#names + 1] = known.index
      names[#names + 1] = known.renewed
      names[#names + 1] = known.name
    end
  end
end

if key ~= '' then
  for _, ref in ipairs(refs_of(sub(ARGV[9], 1, NB), sub(ARGV[9], NB + 1, NB + 8), key)) do
    if ref > after then
      if count == limit then return { 'OK', concat(out), names, after } end
      emit(ref, find_record(ref))
      after = ref
    end
  end
  return { 'OK', concat(out), names, '' }
end

-- A page reads at most so many blocks, so that a filter that finds little does not hold up the server.
local budget = max(512, floor(limit / 4))
local at = after == '' and '-' or '[' .. sub(after, 1, W - 4)
local last_chunk = after ~= '' and sub(after, 1, W - 4) or nil
while true do
  local chunks = call('ZRANGEBYLEX', C, at, '+', 'LIMIT', 0, 16)
  for _, chunk in ipairs(chunks) do
    local map = call('GET', B .. chunk) or ''
    local p = 1
    if chunk == last_chunk then p = floor(tonumber(sub(after, W - 3), 16) / 16) * 2 + 1 end
    while true do
      p = find(map, '[^%z]', p)
      if not p then break end
      local number = floor((p - 1) / 2)
      local name = chunk .. fmt('%03x', number)
      local block = load_block(name)
      blocks[name] = nil
      budget = budget - 1
      for slot = 0, 15 do
        if block[slot] then
          local ref = name .. fmt('%x', slot)
          if ref > after then
            if count == limit then return { 'OK', concat(out), names, after } end
            emit(ref, block[slot])
            after = ref
          end
        end
      end
      if budget <= 0 then return { 'OK', concat(out), names, name .. 'f' } end
      p = number * 2 + 3
    end
    at = '(' .. chunk
  end
  if #chunks < 16 then return { 'OK', concat(out), names, '' } end
end
