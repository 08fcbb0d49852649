-- Keeps which hosts there are. ARGV[3] identity of the controllers' store, [4] its revision, [5] names by id, as JSON.
-- Returns 1, or 0 where a newer list of the same store is kept.
local key = TAG .. ':roster'
local known = call('HMGET', key, 'store_id', 'revision')
if known[1] == ARGV[3] and tonumber(known[2]) > tonumber(ARGV[4]) then return { 0 } end
call('HSET', key, 'store_id', ARGV[3], 'revision', ARGV[4], 'names', ARGV[5])
return { 1 }
