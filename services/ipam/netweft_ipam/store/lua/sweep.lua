-- Ends leases whose time is over, and frees what has rested long enough.
-- ARGV[5] quarantine (ms), [6] blocks at most, then 2 of each host that may be judged: name, until when it need not be heard of (ms).
-- Returns code, leases ended, hosts that must be judged first, whether more is due, whether anything will be; or STALE and the server's history.
-- A renewal may be in the part of the log that a new server has lost, so nothing ends before its family is confirmed.
local server = stale(call('HGET', M, 'inc'))
if server then return { 'STALE', server } end
local quarantine, limit = tonumber(ARGV[5]), tonumber(ARGV[6])
local judged = {}
for index = 7, #ARGV, 2 do
  local host = host_named(ARGV[index])
  if host then
    judged[host.index] = true
    local heartbeat = tonumber(ARGV[index + 1])
    if heartbeat > host.renewed then
      host.renewed = heartbeat
      hosts_changed[host.index] = true
    end
  end
end

local ended, wanted, wanted_names = 0, {}, {}
local due = call('ZRANGEBYSCORE', X, '-inf', now, 'LIMIT', 0, limit)
for _, name in ipairs(due) do
  local block, next_time, waits = load_block(name), nil, false
  for slot = 0, 15 do
    local record = block[slot]
    local lease = record and decode(record)
    if lease and lease.held and lease.ttl > 0 then
      local host = host_at(lease.host)
      local expires = max(lease.renewed, host and host.renewed or 0) + lease.ttl * 1000
      if expires > now then
        if not next_time or expires < next_time then next_time = expires end
      elseif host and not judged[host.index] then
        waits = true
        if not wanted[host.index] then
          wanted[host.index] = true
          wanted_names[#wanted_names + 1] = host.name
        end
      else
        release(name .. fmt('%x', slot), lease, quarantine, EXPIRED)
        ended = ended + 1
      end
    end
  end
  if not waits then
    if next_time then call('ZADD', X, next_time, name) else call('ZREM', X, name) end
  end
end
local freed = free_rested(limit)
flush()
return { 'OK', ended, wanted_names, (#due == limit or freed == limit) and 1 or 0, call('EXISTS', X, Q) > 0 and 1 or 0 }
