-- Leases any address of one pool to an owner who has no record in it: what most single requests are. Whatever is not that
-- simple is left to request.lua, which would do the same. It reads and writes the layout that pool.lua tells, and shares no
-- code with it: making all those functions takes as long as the whole lease.
-- ARGV[1] to [4] as in pool.lua, [5] request id ('' none), [6] fingerprint, [7] range of the pool, [8] lowest and [9] highest
-- automatic ref, [10] host ('' none), [11] kind, [12] TTL (s), [13] owner's key.
-- Returns code, ref, epoch, time, expiry, whether the host is new here, and the server's history; or ALL: request.lua must
-- look, and whether it must soon again, since that is due to the pool and not to the owner.
local call, sub, byte, fmt, floor = redis.call, string.sub, string.byte, string.format, math.floor
local pack, read = struct.pack, struct.unpack
local OWNER, POOL = { 'ALL', 0 }, { 'ALL', 1 }

local M = KEYS[1]
local TAG, W, NB = sub(M, 1, -2), tonumber(ARGV[2]), tonumber(ARGV[3])
local check, keep = string.match(ARGV[4], '^(%d):(%d+)$')
local low, high, host_name, key = ARGV[8], ARGV[9], ARGV[10], ARGV[13]
local kind, ttl = tonumber(ARGV[11]), tonumber(ARGV[12])

local meta = call('HMGET', M, 'g', 'inc', 'ep', 'n', 'p:' .. ARGV[7])
if not (meta[1] and meta[5]) then return { 'NOPOOL' } end
local index, quota = string.match(meta[5], '^(%d+):%w+:(%d*)$')
local server = 'unchecked'
if check == '1' then server = string.match(call('INFO', 'replication'), 'master_replid:(%x+)') or '' end
if server ~= meta[2] then return { 'STALE', server } end
local remember
if ARGV[5] ~= '' then
  remember = TAG .. 'req:' .. meta[1] .. ':' .. ARGV[5]
  if call('EXISTS', remember) == 1 then return OWNER end
end
if quota ~= '' or low > high then return POOL end

local digest = sub(redis.sha1hex(key), 1, 16)
local bucket_name, tail = sub(digest, 1, NB), sub(digest, NB + 1, NB + 8)
local bucket = call('HGET', TAG .. 'o', bucket_name) or ''
if string.find(bucket, tail, 1, true) then return OWNER end

local now = tonumber(ARGV[1])
if now == 0 then
  local t = call('TIME')
  now = t[1] * 1000 + floor(t[2] / 1000)
end
if call('ZRANGEBYSCORE', TAG .. 'q', '-inf', now, 'LIMIT', 0, 1)[1] then return POOL end

-- The lowest free address, in the first chunk alone.
local chunk, start = sub(low, 1, W - 4), tonumber(sub(low, W - 3), 16)
local bitmap = TAG .. 'b:' .. chunk
local bit_number = call('BITPOS', bitmap, 0, start, -1, 'BIT')
if bit_number < start or bit_number == 0 then
  local size = call('STRLEN', bitmap) * 8
  -- The pool's first lease: only the next one can be had here.
  if size == 0 then return OWNER end
  if bit_number < start then bit_number = math.max(start, size) end
end
local ref = chunk .. fmt('%04x', bit_number)
if bit_number > 65535 or ref > high then return POOL end

-- Its record must be a new one: another owner's would have to leave the index too.
local block_name, slot = sub(ref, 1, -2), bit_number % 16
local block = call('HGET', TAG .. 'r', block_name) or ''
local at, size = 1, #block
while at <= size do
  local first, key_len = byte(block, at, at + 1)
  if first % 16 == slot then return POOL end
  at = at + 21 + key_len + (first >= 128 and 10 or 0)
end

local host, host_is_new = 0, 0
if host_name ~= '' then
  local H, count, renewed = TAG .. 'h', 0, 0
  host = tonumber(call('HGET', H, 'n:' .. host_name) or 0)
  if host == 0 then
    host, host_is_new = call('HINCRBY', M, 'hx', 1), 1
    call('HSET', H, 'n:' .. host_name, host)
  else
    count, renewed = read('>I4I6', call('HGET', H, host))
  end
  call('HSET', H, host, pack('>I4I6', count + 1, renewed) .. host_name)
end

local epoch, expires = tonumber(meta[3]) + 1, 0
local head = slot + kind * 16 + 64 + (ttl > 0 and 128 or 0)
local record = pack('>BBI2I4I6I6', head, #key - 1, tonumber(index), host, epoch, now)
if ttl > 0 then
  expires = now + ttl * 1000
  record = record .. pack('>I4I6', ttl, now)
  call('ZADD', TAG .. 'x', 'LT', expires, block_name)
end
record = record .. key
call('SETBIT', bitmap, bit_number, 1)
call('HSET', TAG .. 'r', block_name, block .. record)
call('HSET', TAG .. 'o', bucket_name, bucket .. tail .. ref)
if keep ~= '0' then
  local id = ARGV[1] == '0' and '*' or ARGV[1] .. '-*'
  call('XADD', TAG .. 'e', 'MAXLEN', '~', keep, id, 'd', '\1' .. ref .. record)
end
local counts = call('HMGET', M, 'n' .. index, 'g' .. index)
local changes = { 'ep', epoch, 'n', (meta[4] or 0) + 1, 'n' .. index, (counts[1] or 0) + 1, 's' .. index, ref }
if kind == 1 or kind == 2 then
  changes[9], changes[10] = 'g' .. index, (counts[2] or 0) + 1
end
call('HSET', M, unpack(changes))
if remember then call('SET', remember, ARGV[6], 'EX', 86400) end
return { 'OK', ref, epoch, now, expires, host_is_new, server }
