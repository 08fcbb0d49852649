-- Lists leases of one pool in the order of addresses.
-- ARGV[5] range of the pool, [6] ref to continue after ('' from the start), [7] leases at most, [8] owner's key ('' all),
-- [9] its digest, [10] host ('' all).
-- Returns code, the pool's index, names of blocks in one text, their records, hosts (index, packed as in <tag>:h), ref to
-- continue after or ''. A block that has no records may have nil for them, and blocks may hold records that are not wanted, of other pools or no longer held, and more of them than asked for:
-- whoever asks leaves those out, since to look at each record here would hold up the server for all others.
local meta = call('HMGET', M, 'g', 'p:' .. ARGV[5])
local pool = meta[1] and pool_entry(meta[2])
if not pool then return { 'NOPOOL' } end
local after, limit, key, wanted_host = ARGV[6], tonumber(ARGV[7]), ARGV[8], nil
if ARGV[10] ~= '' then
  local host = host_named(ARGV[10])
  if not host then return { 'OK', pool, '', {}, {}, '' } end
  wanted_host = host.index
end

local names, texts, found_hosts, hosts_seen = {}, {}, {}, {}
local function add_host(index)
  if index > 0 and not hosts_seen[index] then
    hosts_seen[index] = true
    local text = call('HGET', H, index)
    if text then
      found_hosts[#found_hosts + 1] = tostring(index)
      found_hosts[#found_hosts + 1] = text
    end
  end
end

if key ~= '' then
  local following = ''
  for _, ref in ipairs(refs_of(sub(ARGV[9], 1, NB), sub(ARGV[9], NB + 1, NB + 8), key)) do
    if ref > after then
      if #names == limit then
        following = after
        break
      end
      local record = find_record(ref)
      local host = sunpack('>I4', record, 5)
      if not wanted_host or host == wanted_host then
        names[#names + 1], texts[#texts + 1] = sub(ref, 1, -2), record
        add_host(host)
      end
      after = ref
    end
  end
  return { 'OK', pool, concat(names), texts, found_hosts, following }
end

local bits_of = {}
local function count_bits(number)
  local bits, left = 0, number
  while left > 0 do
    bits = bits + left % 2
    left = floor(left / 2)
  end
  bits_of[number] = bits
  return bits
end

-- With few hosts it is cheaper to tell all of them than to look who is in the records.
local tells_all_hosts = not wanted_host and call('HLEN', H) <= limit
if tells_all_hosts then
  local flat = call('HGETALL', H)
  for at = 1, #flat, 2 do
    if sub(flat[at], 1, 2) ~= 'n:' then
      found_hosts[#found_hosts + 1], found_hosts[#found_hosts + 2] = flat[at], flat[at + 1]
    end
  end
end

local seen = 0
-- Reads blocks that were found in the bitmap.
local function read_blocks(fresh)
  if #fresh == 0 then return end
  local read = call('HMGET', R, unpack(fresh))
  if tells_all_hosts and #names == 0 then
    -- As they came: thousands are not worth a look.
    names, texts = fresh, read
    return
  end
  for number, text in ipairs(read) do
    if text and not tells_all_hosts then
      local parts, at, size = {}, 1, #text
      while at <= size do
        local first, key_len, its_pool, host = sunpack('>BBI2I4', text, at)
        local stop = at + HEAD_BYTES + key_len + (first >= 128 and TTL_BYTES or 0)
        if not wanted_host then
          add_host(host)
        elseif host == wanted_host and its_pool == pool and floor(first / 64) % 2 == 1 then
          parts[#parts + 1] = sub(text, at, stop)
        end
        at = stop + 1
      end
      if wanted_host then
        add_host(wanted_host)
        seen, text = seen + #parts, #parts > 0 and concat(parts)
      end
    end
    if text then names[#names + 1], texts[#texts + 1] = fresh[number], text end
  end
end

-- A page reads at most so many blocks, so that a filter that finds little does not hold up the server.
local budget = max(512, floor(limit / 4))
local at = after == '' and '-' or '[' .. sub(after, 1, W - 4)
local last_chunk = after ~= '' and sub(after, 1, W - 4) or nil
local fresh, count, name_of = {}, 0, '%s%03x'
while true do
  local chunks = call('ZRANGEBYLEX', C, at, '+', 'LIMIT', 0, 16)
  for _, chunk in ipairs(chunks) do
    local map = call('GET', B .. chunk) or ''
    local p = 1
    if chunk == last_chunk then p = floor(tonumber(sub(after, W - 3), 16) / 16) * 2 + 1 end
    while true do
      p = find(map, '[^%z]', p)
      if not p then break end
      local number = (p - 1 - (p - 1) % 2) / 2
      local name = fmt(name_of, chunk, number)
      count = count + 1
      fresh[count] = name
      budget = budget - 1
      p = number * 2 + 3
      if wanted_host then
        -- How many of a block are the host's is known when it is read.
        if count == 32 then
          read_blocks(fresh)
          fresh, count = {}, 0
        end
      else
        local high, low = byte(map, p - 2, p - 1)
        seen = seen + (bits_of[high] or count_bits(high)) + (bits_of[low or 0] or count_bits(low or 0))
      end
      if budget <= 0 or seen > limit + 16 then
        read_blocks(fresh)
        return { 'OK', pool, concat(names), texts, found_hosts, name .. 'f' }
      end
    end
    at = '(' .. chunk
  end
  if #chunks < 16 then break end
end
read_blocks(fresh)
return { 'OK', pool, concat(names), texts, found_hosts, '' }
