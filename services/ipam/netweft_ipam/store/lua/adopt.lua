-- Takes back leases that a host holds, after the server may have lost the end of its log.
-- ARGV[5] range of the pool, [6] host, then 6 of each lease: ref, owner's key, its digest, kind, epoch, TTL (s).
-- Returns code, results (packed: status, epoch, time, expiry, ref), words: the holder's key, and the server's history.
--
-- Epochs decide: of two owners of one address the one with the higher epoch got it later, so the other one's end was lost.
local ADOPTED, STALE, LOST = 0, 1, 2

local meta = call('HMGET', M, 'g', 'ep', 'p:' .. ARGV[5])
local pool = meta[1] and pool_entry(meta[3])
if not pool then return { 'NOPOOL' } end

local last, out, words = tonumber(meta[2]), {}, {}
local mine = ensure_host(ARGV[6])
mine.renewed = max(mine.renewed, now)
hosts_changed[mine.index] = true

for index = 7, #ARGV, 6 do
  local ref, key, digest = ARGV[index], ARGV[index + 1], ARGV[index + 2]
  local kind, epoch, ttl = tonumber(ARGV[index + 3]), tonumber(ARGV[index + 4]), tonumber(ARGV[index + 5])
  local record = find_record(ref)
  local lease = record and decode(record)
  local status, time = ADOPTED, now
  if lease and lease.held and lease.epoch > epoch and (lease.key ~= key or lease.host ~= mine.index) then
    status = lease.key == key and STALE or LOST
    epoch, time, ttl = lease.epoch, lease.time, 0
  elseif lease and lease.held and lease.key == key and lease.kind == kind then
    time, epoch = lease.time, max(epoch, lease.epoch)
    if lease.host ~= mine.index then
      count_host(lease.host, -1)
      count_host(mine.index, 1)
    end
    local changed = encode(ref, true, kind, lease.pool, mine.index, epoch, time, key, ttl, now)
    if changed ~= record then put_record(ref, changed) end
  else
    if lease and lease.held then
      -- The old owner's end was lost.
      add('n', -1)
      add('n' .. lease.pool, -1)
      if lease.kind == 1 or lease.kind == 2 then add('g' .. lease.pool, -1) end
      count_host(lease.host, -1)
    elseif lease and lease.time > 0 then
      add('q', -1)
      add('q' .. lease.pool, -1)
      rests_moved[sub(ref, 1, -2)] = true
    end
    if not lease or lease.key ~= key then
      if lease then index_remove(lease.key, ref) end
      index_add(digest, ref)
    end
    set_bit(ref)
    local made = encode(ref, true, kind, pool, mine.index, epoch, now, key, ttl, now)
    put_record(ref, made)
    note(REASSERTED, ref, made)
    add('n', 1)
    add('n' .. pool, 1)
    if kind == 1 or kind == 2 then add('g' .. pool, 1) end
    count_host(mine.index, 1)
  end
  local expires = 0
  if ttl > 0 then
    expires = now + ttl * 1000
    earliest(expiries, sub(ref, 1, -2), expires)
  end
  if epoch > last then last = epoch end
  words[#words + 1] = status == ADOPTED and '' or lease.key
  out[#out + 1] = spack('>BI8I8I8', status, epoch, time, expires) .. ref
end
flush()
call('HSET', M, 'ep', last)
return { 'OK', concat(out), words, CHECK and history() or 'unchecked' }
