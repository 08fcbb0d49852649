-- Leases addresses of one pool.
-- ARGV[5] request id ('' none), [6] fingerprint, [7] range of the pool, [8] lowest and [9] highest automatic ref,
-- [10] groups, then 4 of each: host, kind, TTL (s), serial; then all items in one text, one after the other: 1 byte length
-- of the owner's key - 1, 2 bytes twice the group's number + 1 if a ref is asked for, 16 digest of the key, the ref, the key.
-- Returns code, now, results, words that some results need, whether a host is new here, the use of the family: held, resting,
-- when the next address stops resting; the server's history; the family's epoch before. A result is packed: status, and ref;
-- but for what is granted, with the next epoch, now, and the group's TTL, also epoch, time, expiry before the ref.
local GRANTED, STANDS, IN_USE, RESTING, HOLDS_ANOTHER, EXHAUSTED, QUOTA = 0, 1, 2, 3, 4, 5, 6

local meta = call('HMGET', M, 'g', 'inc', 'ep', 'p:' .. ARGV[7])
local pool, _, quota = pool_entry(meta[4])
if not (meta[1] and pool) then return { 'NOPOOL' } end
local unsettled, server = stale(meta[2])
if unsettled then return { 'STALE', unsettled } end
local remember
if ARGV[5] ~= '' then
  remember = request_key(meta[1], ARGV[5])
  local known = call('GET', remember)
  if known and sub(known, 1, #ARGV[6]) ~= ARGV[6] then return { 'REUSED' } end
end

local low, high = ARGV[8], ARGV[9]
-- What the pool's quota leaves; most pools have none.
local left = quota and max(0, quota - tonumber(call('HGET', M, 'n' .. pool) or 0)) or math.huge
local epoch = tonumber(meta[3])
local first_epoch = epoch
local groups, at = {}, 11
for index = 1, tonumber(ARGV[10]) do
  local kind, ttl = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  groups[index] = {
    host = ARGV[at], kind = kind, ttl = ttl, serial = ARGV[at + 3] == '1', granted = 0,
    -- What all its records have: the first byte without the slot, and what stands before the key.
    first = kind * 16 + 64 + (ttl > 0 and 128 or 0), tail = ttl > 0 and spack(TTL_HEAD, ttl, now),
  }
  at = at + 4
end

local item_keys, names, tails, item_groups, refs, items = {}, {}, {}, {}, {}, 0
do
  local text, p = ARGV[at], 1
  local size = #text
  while p <= size do
    local key_len, high_byte, low_byte = byte(text, p, p + 2)
    local spec = high_byte * 256 + low_byte
    items = items + 1
    names[items], tails[items] = sub(text, p + 3, p + 2 + NB), sub(text, p + 3 + NB, p + 10 + NB)
    p = p + 19
    if spec % 2 == 1 then
      refs[items] = sub(text, p, p + W - 1)
      p = p + W
    end
    item_keys[items] = sub(text, p, p + key_len)
    item_groups[items] = groups[floor(spec / 2)]
    p = p + key_len + 1
  end
end

-- Read all hosts in two calls: a batch of many endpoints is of as many hosts.
if #groups > 1 then
  local fields, indexes = {}, {}
  for number, group in ipairs(groups) do fields[number] = 'n:' .. group.host end
  for from = 1, #fields, 2000 do
    for _, index in ipairs(call('HMGET', H, unpack(fields, from, min(from + 1999, #fields)))) do
      if index then indexes[#indexes + 1] = index end
    end
  end
  for from = 1, #indexes, 2000 do
    local texts = call('HMGET', H, unpack(indexes, from, min(from + 1999, #indexes)))
    for number, text in ipairs(texts) do
      local host = read_host(tonumber(indexes[from + number - 1]), text)
      if host then hosts_by_name[host.name] = host end
    end
  end
end

-- Read all buckets in a few calls: most batches touch as many buckets as they have items.
for from = 1, items, 2000 do
  local to = min(from + 1999, items)
  local texts = call('HMGET', O, unpack(names, from, to))
  for index = from, to do buckets[names[index]] = texts[index - from + 1] or '' end
end

free_rested(64)

local SLOTS, LEASED_BYTE = {}, char(LEASED)
local DIGITS = { [0] = '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f' }

for slot = 0, 15 do SLOTS[DIGITS[slot]] = slot end

-- Takes up to `count` free addresses from..to, lowest first; appends their refs to `found`.
local function scan(from, to, count, found)
  local chunk, last_chunk = sub(from, 1, W - 4), sub(to, 1, W - 4)
  local start = tonumber(sub(from, W - 3), 16)
  local wanted = #found + count
  while true do
    local stop = chunk == last_chunk and tonumber(sub(to, W - 3), 16) or 65535
    local key = B .. chunk
    while start <= stop and #found < wanted do
      -- Redis skips what is taken.
      local first = call('BITPOS', key, 0, start, -1, 'BIT')
      if first < start or first == 0 then
        -- Nothing is free in the bitmap from here on, or there is none: behind its end all is free.
        local size = call('STRLEN', key) * 8
        if size == 0 then note_chunk(chunk) end
        if first < start then first = max(start, size) end
      end
      if first > stop then break end
      if wanted - #found == 1 then
        call('SETBIT', key, first, 1)
        found[#found + 1] = chunk .. fmt('%04x', first)
        return
      end
      -- A window wide enough for what is wanted if all were free.
      local here = floor(first / 8)
      local length = min(floor(stop / 8) - here + 1, floor((wanted - #found) / 8) + 2, 1024)
      local window = call('GETRANGE', key, here, here + length - 1)
      if #window < length then window = window .. string.rep('\0', length - #window) end
      local parts, copied, p = {}, 0, 1
      while #found < wanted do
        p = find(window, '[^\255]', p)
        if not p then break end
        local old = byte(window, p)
        local new, base, weight = old, (here + p - 1) * 8, 128
        local name = chunk .. fmt('%03x', floor(base / 16))
        if old == 0 and base >= first and base + 7 <= stop and #found + 8 <= wanted then
          new = 255
          local at, digit = #found, base % 16
          for bit_number = 0, 7 do found[at + 1 + bit_number] = name .. DIGITS[digit + bit_number] end
        else
          for bit_number = base, base + 7 do
            if (old == 0 or floor(old / weight) % 2 == 0) and bit_number >= first and bit_number <= stop then
              new = new + weight
              found[#found + 1] = name .. DIGITS[bit_number % 16]
              if #found == wanted then break end
            end
            weight = weight / 2
          end
        end
        if new ~= old then
          parts[#parts + 1] = sub(window, copied + 1, p - 1)
          parts[#parts + 1] = char(new)
          copied = p
        end
        p = p + 1
      end
      call('SETRANGE', key, here, concat(parts))
      start = (here + length) * 8
    end
    if #found >= wanted or chunk == last_chunk then return end
    chunk, start = successor(chunk), 0
    if not chunk then return end
  end
end

local cursor
-- Returns up to `count` fresh automatic addresses, in the order in which they are given out.
local function take(count, serial)
  local found = {}
  if low > high then return found end
  if serial then
    cursor = cursor or call('HGET', M, 's' .. pool) or ''
    local from = cursor ~= '' and cursor >= low and cursor < high and successor(cursor) or low
    scan(from, high, count, found)
    if #found < count and from > low then scan(low, cursor, count - #found, found) end
  else
    scan(low, high, count, found)
  end
  if #found > 0 then cursor = found[#found] end
  return found
end

-- Returns fresh automatic addresses; when they run short, everything that has rested is freed first.
local function take_all(count, serial)
  local found = take(count, serial)
  while #found < count and free_rested(64) > 0 do
    local more = take(count - #found, serial)
    for index = 1, #more do found[#found + 1] = more[index] end
  end
  return found
end

local out, words, n = {}, {}, 0
local used, infrastructure = 0, 0

local function expiry(lease)
  if lease.ttl == 0 then return 0 end
  local host = host_at(lease.host)
  return max(lease.renewed, host and host.renewed or 0) + lease.ttl * 1000
end

-- Makes the record of a lease whose bit is set already; item: its number.
local function grant(ref, item)
  local group, key, block_name = item_groups[item], item_keys[item], sub(ref, 1, -2)
  local block, slot = blocks[block_name] or load_block(block_name), slot_of(ref)
  local old = block[slot]
  local known = false
  if old then
    local was = decode(old)
    if was.time > 0 then
      add('q', -1)
      add('q' .. was.pool, -1)
      rests_moved[block_name] = true
    end
    known = was.key == key
    if not known then index_remove(was.key, ref) end
  end
  if not known then
    local name = names[item]
    buckets[name] = buckets[name] .. tails[item] .. ref
    buckets_changed[name] = true
  end
  epoch, left, used = epoch + 1, left - 1, used + 1
  group.granted = group.granted + 1
  if not group.index then group.index = group.host ~= '' and ensure_host(group.host).index or 0 end
  local record
  if group.tail then
    record = spack(HEAD, group.first + slot, #key - 1, pool, group.index, epoch, now) .. group.tail .. key
    earliest(expiries, block_name, now + group.ttl * 1000)
  else
    record = spack(WHOLE, group.first + slot, #key - 1, pool, group.index, epoch, now, key)
  end
  block[slot], blocks_changed[block_name] = record, true
  note(LEASED, ref, record)
  out[n + 1], out[n + 2] = '\0', ref
  n = n + 2
end

-- Grants the addresses found to items from..to, in order; their owners are new here. It does what `grant` does, in half the time: most of a batch is that.
local function grant_run(found, from, to)
  local name, block, last_group, first, index, tail
  local size, at = events_size, n
  for item = from, to do
    local ref, group = found[item - from + 1], item_groups[item]
    local block_name = sub(ref, 1, -2)
    if block_name ~= name then
      name, block = block_name, blocks[block_name] or load_block(block_name)
      blocks_changed[name] = true
    end
    local slot = SLOTS[sub(ref, -1)]
    if block[slot] then
      events_size, n = size, at
      grant(ref, item)
      size, at = events_size, n
    else
      if group ~= last_group then
        if not group.index then group.index = group.host ~= '' and ensure_host(group.host).index or 0 end
        last_group, first, index, tail = group, group.first, group.index, group.tail
      end
      local key, bucket, record = item_keys[item], names[item], nil
      epoch = epoch + 1
      group.granted = group.granted + 1
      if tail then
        record = spack(HEAD, first + slot, #key - 1, pool, index, epoch, now) .. tail .. key
        earliest(expiries, name, now + group.ttl * 1000)
      else
        record = spack(WHOLE, first + slot, #key - 1, pool, index, epoch, now, key)
      end
      block[slot] = record
      buckets[bucket] = buckets[bucket] .. tails[item] .. ref
      buckets_changed[bucket] = true
      left, used = left - 1, used + 1
      if KEEP > 0 then
        events[size + 1], events[size + 2], events[size + 3] = LEASED_BYTE, ref, record
        size = size + 3
      end
      out[at + 1], out[at + 2] = '\0', ref
      at = at + 2
    end
  end
  events_size, n = size, at
end

-- Answers with a lease that the owner holds already, renewed.
local function stand(ref, lease, group)
  local changed = false
  if lease.ttl > 0 or group.ttl > 0 then
    lease.ttl, lease.renewed, changed = group.ttl, now, true
    if lease.ttl > 0 then earliest(expiries, sub(ref, 1, -2), now + lease.ttl * 1000) end
  end
  if lease.host == 0 and group.host ~= '' then
    lease.host, changed = ensure_host(group.host).index, true
    count_host(lease.host, 1)
  end
  if changed then
    put_record(ref, encode(
      ref, true, lease.kind, lease.pool, lease.host, lease.epoch, lease.time, lease.key, lease.ttl, lease.renewed))
  end
  local host = host_at(lease.host)
  words[#words + 1] = host and host.name or ''
  n = n + 1
  out[n] = spack('>BI8I8I8', STANDS, lease.epoch, lease.time, expiry(lease)) .. ref
end

local full = false
local function refuse(status, ref, time)
  full = full or status == EXHAUSTED
  n = n + 1
  out[n] = spack('>BI8I8I8', status, 0, time or 0, 0) .. ref
end

-- The lease of a kind that the owner holds through this pool, and the lowest free address that was the owner's.
local function of_owner(item, kind)
  local sticky
  for _, ref in ipairs(refs_of(names[item], tails[item], item_keys[item])) do
    local lease = decode(find_record(ref))
    if lease.held then
      if lease.kind == kind and lease.pool == pool then return ref, lease end
    elseif not sticky and ref >= low and ref <= high then
      sticky = ref
    end
  end
  return nil, nil, sticky
end

local function ask_address(item)
  local ref, group, key = refs[item], item_groups[item], item_keys[item]
  local record = find_record(ref)
  local lease = record and decode(record)
  if lease and lease.held then
    if lease.key == key and lease.kind == group.kind and lease.pool == pool then return stand(ref, lease, group) end
    words[#words + 1] = lease.key
    return refuse(IN_USE, ref)
  end
  if group.kind == 0 then
    local held = of_owner(item, group.kind)
    if held then return refuse(HOLDS_ANOTHER, held) end
  end
  if lease and lease.time > now and lease.key ~= key then return refuse(RESTING, ref, lease.time) end
  if left < 1 then return refuse(QUOTA, ref, quota) end
  if not lease or lease.time == 0 then set_bit(ref) end
  grant(ref, item)
end

local function ask_any(item)
  local group = item_groups[item]
  local ref, lease, sticky = of_owner(item, group.kind)
  if ref then return stand(ref, lease, group) end
  if left < 1 then return refuse(QUOTA, low, quota) end
  if sticky then
    if decode(find_record(sticky)).time == 0 then set_bit(sticky) end
    return grant(sticky, item)
  end
  local found = take_all(1, group.serial)
  if not found[1] then return refuse(EXHAUSTED, low) end
  grant(found[1], item)
end

-- Items that want any address and whose owner was never here are taken in runs, the rest one by one.
local seen, from = {}, 1
local function finish_run(to)
  if from > to then return end
  local found = take_all(min(to - from + 1, left), item_groups[from].serial)
  grant_run(found, from, from + #found - 1)
  for _ = from + #found, to do
    if left < 1 then refuse(QUOTA, low, quota) else refuse(EXHAUSTED, low) end
  end
end

for item = 1, items do
  local key = item_keys[item]
  if not refs[item] and not seen[key] and not find_entry(buckets[names[item]], tails[item], 1) then
    if item > from and item_groups[from].serial ~= item_groups[item].serial then
      finish_run(item - 1)
      from = item
    end
  else
    finish_run(item - 1)
    if refs[item] then ask_address(item) else ask_any(item) end
    from = item + 1
  end
  seen[key] = true
end
finish_run(items)

for _, group in ipairs(groups) do
  if group.granted > 0 then
    if group.index > 0 then count_host(group.index, group.granted) end
    if group.kind == 1 or group.kind == 2 then infrastructure = infrastructure + group.granted end
  end
end
add('n', used)
add('n' .. pool, used)
add('g' .. pool, infrastructure)
if used > 0 then
  meta_changed.ep = epoch
  if cursor and cursor ~= '' then meta_changed['s' .. pool] = cursor end
end
flush()
if remember then call('SET', remember, ARGV[6], 'EX', DAY) end
-- Only a full pool's refusal tells how full it is.
local held, resting, next_rest = 0, 0, 0
if full then
  local use = call('HMGET', M, 'n', 'q')
  held, resting = tonumber(use[1] or 0), tonumber(use[2] or 0)
  next_rest = tonumber(call('ZRANGE', Q, 0, 0, 'WITHSCORES')[2] or 0)
end
return { 'OK', now, concat(out), words, host_added and 1 or 0, held, resting, next_rest, server, first_epoch }
