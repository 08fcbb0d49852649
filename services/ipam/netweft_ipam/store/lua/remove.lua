-- Takes an ended pool out of the registry. Idempotent.
-- ARGV[2] request id ('' none), [3] fingerprint, [4] name, [5] pool's generation, [6] family digit, [7] first, [8] last,
-- [9] name of the subnet.
local name, version, first, last = ARGV[4], ARGV[6], ARGV[7], ARGV[8]
local record = call('HGET', P, name)
if record and sub(record, 17, 32) == ARGV[5] then
  call('HDEL', P, name)
  call('ZREM', L, name)
  if #pools_of(ARGV[9]) == 0 then
    call('ZREM', Z, version .. first .. '-' .. last)
    -- First fit: what became free is found again by every search that had passed it.
    local cursors = call('HGETALL', K)
    for index = 1, #cursors, 2 do
      local cursor, frontier = cursors[index], cursors[index + 1]
      local low, high, size = string.match(cursor, '^' .. version .. '(%x+)-(%x+)/(%d+)$')
      if low and #low == #first and last >= low and first <= high then
        local start = fill(first, tonumber(size), false)
        if start < low then start = low end
        if start < frontier then call('HSET', K, cursor, start) end
      end
    end
  end
end
if ARGV[2] ~= '' then call('SET', TAG .. ':req:' .. ARGV[2], ARGV[3], 'EX', DAY) end
return { 'OK' }
