-- Renews all leases of a host in one family. ARGV[5] host, [6] how long it may be silent (ms). Returns code and how many leases the host holds here.
if call('EXISTS', M) == 0 then return { 'NOPOOL' } end
local host = host_named(ARGV[5])
if not host then return { 'OK', 0 } end
host.renewed = max(host.renewed, now + tonumber(ARGV[6]))
hosts_changed[host.index] = true
flush()
return { 'OK', host.count }
