-- Moves leases of one family to another host.
-- ARGV[5] request id ('' none), [6] fingerprint, [7] range of the pool, [8] host, then 3 of each item: ref, owner's key
-- ('' any), epoch ('0' any).
-- Returns code, results (packed: status, epoch, time, expiry, ref), words: the owner's key, or what stands in the way;
-- a digit for the kind of each lease; and the server's history.
local MOVED, NOT_HELD, NOT_THE_OWNER, STALE_EPOCH = 0, 1, 2, 3

local meta = call('HMGET', M, 'g', 'inc', 'ep', 'p:' .. ARGV[7])
if not (meta[1] and meta[4]) then return { 'NOPOOL' } end
local unsettled, server = stale(meta[2])
if unsettled then return { 'STALE', unsettled } end
local remember
if ARGV[5] ~= '' then
  remember = request_key(meta[1], ARGV[5])
  local known = call('GET', remember)
  if known and sub(known, 1, #ARGV[6]) ~= ARGV[6] then return { 'REUSED' } end
  -- The first call has moved what it could; what it moved is on the host already, with an epoch that the caller's item
  -- does not name, and that is no reason to refuse the retry.
  if known then remember = 'done' end
end

local target, epoch, moved = ARGV[8], tonumber(meta[3]), false
local out, words, kinds = {}, {}, {}
for index = 9, #ARGV, 3 do
  local ref, key, named = ARGV[index], ARGV[index + 1], ARGV[index + 2]
  local record = find_record(ref)
  local lease = record and decode(record)
  local host = lease and lease.held and host_at(lease.host)
  local there = lease and lease.held and (host and host.name or '') == target
  local status = MOVED
  if not lease or not lease.held then
    status, lease = NOT_HELD, { epoch = 0, time = 0, kind = 0, ttl = 0, host = 0, renewed = 0, key = '' }
  elseif key ~= '' and key ~= lease.key then
    status = NOT_THE_OWNER
  elseif named ~= '0' and tonumber(named) ~= lease.epoch and not (there and remember == 'done') then
    status = STALE_EPOCH
  elseif not there then
    epoch, moved = epoch + 1, true
    count_host(lease.host, -1)
    lease.host = target ~= '' and ensure_host(target).index or 0
    count_host(lease.host, 1)
    lease.epoch, lease.renewed = epoch, now
    local changed = encode(
      ref, true, lease.kind, lease.pool, lease.host, epoch, lease.time, lease.key, lease.ttl, lease.renewed)
    put_record(ref, changed)
    note(TRANSFERRED, ref, changed)
  end
  local renewed = host_at(lease.host)
  local expires = 0
  if lease.ttl > 0 then
    expires = max(lease.renewed, renewed and renewed.renewed or 0) + lease.ttl * 1000
  end
  out[#out + 1] = spack('>BI8I8I8', status, lease.epoch, lease.time, expires) .. ref
  words[#words + 1] = lease.key
  kinds[#kinds + 1] = lease.kind
end
flush()
if moved then call('HSET', M, 'ep', epoch) end
if remember and remember ~= 'done' then call('SET', remember, ARGV[6], 'EX', DAY) end
return { 'OK', concat(out), words, concat(kinds), server }
