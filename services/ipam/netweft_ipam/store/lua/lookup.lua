-- Finds who holds an address. ARGV[5] ref. Returns code, record, range of the lease's pool, host's name, host's renewal.
local record = find_record(ARGV[5])
local lease = record and decode(record)
if not lease or not lease.held then return { 'FREE' } end
local host = host_at(lease.host)
local range = call('HGET', M, 'i:' .. lease.pool) or ''
return { 'OK', record, range, host and host.name or '', host and host.renewed or 0 }
