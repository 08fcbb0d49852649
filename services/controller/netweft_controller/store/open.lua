-- Says which store this is: gives it an id when it has none, and another id when it is behind what its user has seen.
-- KEYS: 1 meta. ARGV: 1 id that the caller knows ('' none), 2 revision that it has seen, 3 id to give.
-- Returns the id, the revision, and up to which revision it has what the caller's store had ('' not known).
local known = redis.call('HMGET', KEYS[1], 'store_id', 'revision', 'cut/' .. ARGV[1])
local id, revision, cut = known[1], tonumber(known[2] or '0'), known[3]
local seen = tonumber(ARGV[2])
if not id or (id == ARGV[1] and revision < seen) then
  if ARGV[1] ~= '' then
    cut = string.format('%d', revision)
    redis.call('HSET', KEYS[1], 'cut/' .. ARGV[1], cut)
  end
  id = ARGV[3]
  if revision < seen then revision = seen end
  redis.call('HSET', KEYS[1], 'store_id', id, 'revision', string.format('%d', revision))
end
return {id, revision, cut or ''}
