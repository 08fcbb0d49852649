-- Shared part of every script over one family of pools (all pools of one subnet in one address space).
--
-- KEYS[1] is <tag>:m and every other key is derived from the same hash tag, so one script is atomic in Redis Cluster.
--   <tag>:m          hash    g generation, ep last epoch, inc server history it was confirmed on, px last pool index,
--                            pc pools, n/q leases held and addresses resting; p:<range> <pool index>:<generation>:<quota>,
--                            i:<index> range, n<index> g<index> q<index> held, of these infrastructure, resting,
--                            s<index> last address given out automatically
--   <tag>:b:<chunk>  string  bitmap of 2^16 addresses: set while held or resting; made on demand
--   <tag>:c          zset    chunks that have a bitmap, in lexical order
--   <tag>:r          hash    block of 16 addresses -> its records, one after the other
--   <tag>:o          hash    bucket of owners -> entries (8 digits of the key's digest, ref)
--   <tag>:q, <tag>:x zset    block -> when its first address stops resting, when its first lease may run out (ms)
--   <tag>:e          stream  d: what happened, up to 256 times: 1 byte event, ref, record
--   <tag>:h          hash    n:<host> -> index, <index> -> leases held, renewed (ms), name
--   <tag>:gone:<gen> string  there for a day after the end of a pool of that generation
--   <tag>:req:<gen>:<id>  string  fingerprint of a request, and its answer where it must be kept
--
-- A ref is an address less the subnet's base in hexadecimal, W digits: chunk (W - 4), block (3), slot (1).
-- A record is: 1 byte slot + 16 * kind + 64 if held + 128 if it has a TTL, 1 byte key length - 1, 2 pool index,
-- 4 host index, 6 epoch, 6 time (ms: of the grant while held, else when it stops resting, 0: it is free),
-- then with a TTL 4 bytes TTL (s) and 6 renewed (ms), then the owner's key. A record outlives its lease until the
-- address goes to another owner: that is what makes addresses sticky.
--
-- ARGV[1] time in ms (0: the server's), ARGV[2] W, ARGV[3] digits of a bucket's name, ARGV[4] <1: check the server's
-- history>:<entries of the stream that are kept>.
local call, byte, char, find, fmt, sub = redis.call, string.byte, string.char, string.find, string.format, string.sub
local concat, floor, max, min = table.concat, math.floor, math.max, math.min
local spack, sunpack = struct.pack, struct.unpack

local M = KEYS[1]
local TAG = sub(M, 1, -3)
local R, O, Q, X, H, C, B = TAG .. ':r', TAG .. ':o', TAG .. ':q', TAG .. ':x', TAG .. ':h', TAG .. ':c', TAG .. ':b:'
local E = TAG .. ':e'
local CHECK, KEEP = string.match(ARGV[4], '^(%d):(%d+)$')
CHECK, KEEP = CHECK == '1', tonumber(KEEP)
local W, NB = tonumber(ARGV[2]), tonumber(ARGV[3])
local ENTRY = 8 + W
local HEAD, HEAD_BYTES, TTL_HEAD, TTL_BYTES = '>BBI2I4I6I6', 20, '>I4I6', 10
local WHOLE = HEAD .. 'c0'
local DAY = 86400

local now = tonumber(ARGV[1])
if now == 0 then
  local t = call('TIME')
  now = t[1] * 1000 + floor(t[2] / 1000)
end

-- Which history of writes this server continues: it changes at every restart and every promotion of a replica.
local function history()
  return string.match(call('INFO', 'replication'), 'master_replid:(%x+)') or ''
end

-- Returns the server's history if the family is not confirmed on it, else nil; and the server's history.
local function stale(confirmed)
  local server = CHECK and history() or 'unchecked'
  return server ~= confirmed and server or nil, server
end

-- Request ids are of one life of the family.
local function request_key(generation, id)
  return TAG .. ':req:' .. (generation or '') .. ':' .. id
end

-- Counters to move, and other fields of <tag>:m to set.
local deltas, meta_changed = {}, {}
local function add(field, amount)
  deltas[field] = (deltas[field] or 0) + amount
end

-- records -----------------------------------------------------------------------------------------------------------

local blocks, blocks_changed = {}, {}

local function load_block(name)
  local block = blocks[name]
  if block then return block end
  block = {}
  local text = call('HGET', R, name)
  if text then
    local at, size = 1, #text
    while at <= size do
      local first, key_len = byte(text, at, at + 1)
      local stop = at + HEAD_BYTES + key_len + (first >= 128 and TTL_BYTES or 0)
      block[first % 16] = sub(text, at, stop)
      at = stop + 1
    end
  end
  blocks[name] = block
  return block
end

local function slot_of(ref)
  return tonumber(sub(ref, -1), 16)
end

local function find_record(ref)
  return load_block(sub(ref, 1, -2))[slot_of(ref)]
end

local function put_record(ref, record)
  local name = sub(ref, 1, -2)
  load_block(name)[slot_of(ref)] = record
  blocks_changed[name] = true
end

local function encode(ref, held, kind, pool, host, epoch, time, key, ttl, renewed)
  local first = slot_of(ref) + kind * 16 + (held and 64 or 0) + (ttl > 0 and 128 or 0)
  if ttl > 0 then
    return spack(HEAD, first, #key - 1, pool, host, epoch, time) .. spack(TTL_HEAD, ttl, renewed) .. key
  end
  return spack(WHOLE, first, #key - 1, pool, host, epoch, time, key)
end

local function decode(record)
  local first, key_len, pool, host, epoch, time = sunpack(HEAD, record)
  local ttl, renewed = 0, 0
  if first >= 128 then ttl, renewed = sunpack(TTL_HEAD, record, HEAD_BYTES + 1) end
  return {
    held = floor(first / 64) % 2 == 1, kind = floor(first / 16) % 4, pool = pool, host = host, epoch = epoch,
    time = time, ttl = ttl, renewed = renewed, key = sub(record, -(key_len + 1)),
  }
end

-- index of owners ---------------------------------------------------------------------------------------------------

local buckets, buckets_changed = {}, {}

local function load_bucket(name)
  local text = buckets[name]
  if not text then
    text = call('HGET', O, name) or ''
    buckets[name] = text
  end
  return text
end

-- Returns where `what` stands at an entry's beginning.
local function find_entry(text, what, from)
  local at = find(text, what, from, true)
  while at and (at - 1) % ENTRY ~= 0 do at = find(text, what, at + 1, true) end
  return at
end

local function digest_of(key)
  return sub(redis.sha1hex(key), 1, 16)
end

local function index_add(digest, ref)
  local name = sub(digest, 1, NB)
  buckets[name] = load_bucket(name) .. sub(digest, NB + 1, NB + 8) .. ref
  buckets_changed[name] = true
end

local function index_remove(key, ref)
  local digest = digest_of(key)
  local name = sub(digest, 1, NB)
  local text = load_bucket(name)
  local at = find_entry(text, sub(digest, NB + 1, NB + 8) .. ref, 1)
  if at then
    buckets[name] = sub(text, 1, at - 1) .. sub(text, at + ENTRY)
    buckets_changed[name] = true
  end
end

-- Returns the refs whose records name the key, lowest first; name and tail are of its digest.
local function refs_of(name, tail, key)
  local text, refs = load_bucket(name), {}
  local at = find_entry(text, tail, 1)
  while at do
    local ref = sub(text, at + 8, at + ENTRY - 1)
    local record = find_record(ref)
    if record and byte(record, 2) + 1 == #key and sub(record, -#key) == key then refs[#refs + 1] = ref end
    at = find_entry(text, tail, at + ENTRY)
  end
  table.sort(refs)
  return refs
end

-- hosts -------------------------------------------------------------------------------------------------------------

local hosts, hosts_by_name, hosts_changed, host_added = {}, {}, {}, false

local function read_host(index, text)
  local host = false
  if text then
    local count, renewed = sunpack('>I4I6', text)
    host = { index = index, count = count, renewed = renewed, name = sub(text, 11) }
  end
  hosts[index] = host
  return host
end

local function host_at(index)
  local host = hosts[index]
  if host == nil then host = read_host(index, index > 0 and call('HGET', H, index)) end
  return host
end

local function host_named(name)
  if hosts_by_name[name] then return hosts_by_name[name] end
  local index = call('HGET', H, 'n:' .. name)
  return index and host_at(tonumber(index))
end

local function ensure_host(name)
  local host = host_named(name)
  if host then return host end
  host = { index = call('HINCRBY', M, 'hx', 1), count = 0, renewed = 0, name = name }
  hosts[host.index], host_added = host, true
  call('HSET', H, 'n:' .. name, host.index)
  return host
end

local function count_host(index, amount)
  local host = host_at(index)
  if host then
    host.count = host.count + amount
    hosts_changed[index] = true
  end
end

-- bitmap ------------------------------------------------------------------------------------------------------------

local chunks_seen = {}

-- Lists a chunk that has a bitmap now.
local function note_chunk(chunk)
  if not chunks_seen[chunk] then
    call('ZADD', C, 0, chunk)
    chunks_seen[chunk] = true
  end
end

local function set_bit(ref)
  local chunk = sub(ref, 1, W - 4)
  note_chunk(chunk)
  call('SETBIT', B .. chunk, tonumber(sub(ref, W - 3), 16), 1)
end

local function clear_bit(ref)
  call('SETBIT', B .. sub(ref, 1, W - 4), tonumber(sub(ref, W - 3), 16), 0)
end

-- Returns the next hexadecimal number of the same width, or nil after the last one.
local function successor(hex)
  local head, digit, tail = string.match(hex, '^(%x*)([0-9a-e])(f*)$')
  if not digit then return nil end
  return head .. fmt('%x', tonumber(digit, 16) + 1) .. string.rep('0', #tail)
end

-- timers ------------------------------------------------------------------------------------------------------------

local rests, rests_moved, expiries = {}, {}, {}

local function earliest(times, name, time)
  local known = times[name]
  if not known or time < known then times[name] = time end
end

-- events ------------------------------------------------------------------------------------------------------------

local LEASED, RELEASED, EXPIRED, REASSERTED, TRANSFERRED = 1, 2, 3, 4, 5
-- Three texts each, since putting them together is dear: what happened, ref, record.
local events, events_size = {}, 0

local function note(event, ref, record)
  if KEEP > 0 then
    events[events_size + 1], events[events_size + 2], events[events_size + 3] = char(event), ref, record
    events_size = events_size + 3
  end
end

local function write_events()
  local id = ARGV[1] == '0' and '*' or ARGV[1] .. '-*'
  for at = 1, events_size, 768 do
    call('XADD', E, 'MAXLEN', '~', KEEP, id, 'd', concat(events, '', at, min(at + 767, events_size)))
  end
end

-- leases ------------------------------------------------------------------------------------------------------------

-- Ends a lease: the address rests for `quarantine` ms, then it is free.
local function release(ref, lease, quarantine, event)
  note(event, ref, encode(ref, true, lease.kind, lease.pool, lease.host, lease.epoch, lease.time, lease.key, 0, 0))
  local rest = quarantine > 0 and now + quarantine or 0
  put_record(ref, encode(ref, false, lease.kind, lease.pool, 0, lease.epoch, rest, lease.key, 0, 0))
  if rest > 0 then
    earliest(rests, sub(ref, 1, -2), rest)
    add('q', 1)
    add('q' .. lease.pool, 1)
  else
    clear_bit(ref)
  end
  add('n', -1)
  add('n' .. lease.pool, -1)
  if lease.kind == 1 or lease.kind == 2 then add('g' .. lease.pool, -1) end
  count_host(lease.host, -1)
end

-- Frees what has rested long enough, in at most `limit` blocks; returns how many blocks were due.
local function free_rested(limit)
  local due = call('ZRANGEBYSCORE', Q, '-inf', now, 'LIMIT', 0, limit)
  for _, name in ipairs(due) do
    local block, next_time, mask = load_block(name), nil, 0
    for slot, record in pairs(block) do
      local lease = decode(record)
      if not lease.held and lease.time > 0 then
        if lease.time <= now then
          block[slot] = sub(record, 1, 14) .. '\0\0\0\0\0\0' .. sub(record, 21)
          blocks_changed[name] = true
          mask = mask + 2 ^ (15 - slot)
          add('q', -1)
          add('q' .. lease.pool, -1)
        elseif not next_time or lease.time < next_time then
          next_time = lease.time
        end
      end
    end
    if mask > 0 then
      -- A block is two bytes of the bitmap, the lowest address in the highest bit.
      local key, at = B .. sub(name, 1, W - 4), tonumber(sub(name, W - 3), 16) * 2
      local high, low = byte(call('GETRANGE', key, at, at + 1), 1, 2)
      local left = bit.band((high or 0) * 256 + (low or 0), bit.bnot(mask))
      call('SETRANGE', key, at, char(floor(left / 256), left % 256))
    end
    if next_time then call('ZADD', Q, next_time, name) else call('ZREM', Q, name) end
  end
  return #due
end

-- Writes what changed; once, at the end of a script.
local function flush()
  local args = {}
  local function send(key)
    if #args > 0 then call('HSET', key, unpack(args)) end
    args = {}
  end
  for name in pairs(blocks_changed) do
    local block, parts = blocks[name], {}
    for slot = 0, 15 do
      if block[slot] then parts[#parts + 1] = block[slot] end
    end
    args[#args + 1] = name
    args[#args + 1] = concat(parts)
    if #args >= 2000 then send(R) end
  end
  send(R)
  for name in pairs(buckets_changed) do
    if buckets[name] == '' then
      call('HDEL', O, name)
    else
      args[#args + 1] = name
      args[#args + 1] = buckets[name]
      if #args >= 2000 then send(O) end
    end
  end
  send(O)
  for index in pairs(hosts_changed) do
    -- A host without leases stays: the history names it by its index.
    local host = hosts[index]
    args[#args + 1] = index
    args[#args + 1] = spack('>I4I6', host.count, host.renewed) .. host.name
    if #args >= 2000 then send(H) end
  end
  send(H)
  for name in pairs(rests_moved) do
    local next_time
    for _, record in pairs(blocks[name]) do
      local lease = decode(record)
      if not lease.held and lease.time > 0 and (not next_time or lease.time < next_time) then next_time = lease.time end
    end
    if next_time then call('ZADD', Q, next_time, name) else call('ZREM', Q, name) end
  end
  for name, time in pairs(rests) do call('ZADD', Q, 'LT', time, name) end
  for name, time in pairs(expiries) do call('ZADD', X, 'LT', time, name) end
  write_events()
  local fields = {}
  for field, amount in pairs(deltas) do
    if amount ~= 0 then fields[#fields + 1] = field end
  end
  if #fields > 0 then
    local counts = call('HMGET', M, unpack(fields))
    for index, field in ipairs(fields) do
      args[#args + 1] = field
      args[#args + 1] = tonumber(counts[index] or 0) + deltas[field]
    end
  end
  for field, value in pairs(meta_changed) do
    args[#args + 1] = field
    args[#args + 1] = value
  end
  send(M)
end

-- Returns a pool's index, generation, and quota or nil, out of its p: field; nil without one.
local function pool_entry(text)
  if not text then return nil end
  local index, generation, quota = string.match(text, '^(%d+):(%w+):(%d*)$')
  return tonumber(index), generation, tonumber(quota)
end

-- Removes everything of the family.
local function remove_all()
  local at = '-'
  repeat
    local chunks = call('ZRANGEBYLEX', C, at, '+', 'LIMIT', 0, 500)
    for _, chunk in ipairs(chunks) do
      call('UNLINK', B .. chunk)
      at = '(' .. chunk
    end
  until #chunks < 500
  call('UNLINK', M, R, O, Q, X, H, C, E)
end
