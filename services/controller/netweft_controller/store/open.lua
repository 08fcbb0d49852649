-- Says which store this is: gives it an id when it has none, and another id when it is behind what its user has seen.
-- KEYS: 1 meta. ARGV: 1 id that the caller knows, 2 revision that it has seen, 3 id to give.
local known = redis.call('HMGET', KEYS[1], 'store_id', 'revision')
local id, revision = known[1], tonumber(known[2] or '0')
local seen = tonumber(ARGV[2])
if not id or (id == ARGV[1] and revision < seen) then
  id = ARGV[3]
  if revision < seen then revision = seen end
  redis.call('HSET', KEYS[1], 'store_id', id, 'revision', string.format('%d', revision))
end
return {id, revision}
