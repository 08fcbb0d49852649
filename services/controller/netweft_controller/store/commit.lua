-- Executes one commit atomically. Redis 7.0; every key carries the hash tag of KEYS[1].
-- KEYS: 1 meta, 2 log, 3 marks of the log, 4 claims, 5.. one hash a kind, then the keys of requests: once, remember..., forget...
-- ARGV: 1 the commit as MessagePack, 2 log entry, then values of the puts, for `once` what must be
-- remembered of it and what is to be, values of `remember`.
local c = cmsgpack.unpack(ARGV[1])
local meta, log, marks, claims = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local FIRST_KIND, FIRST_VALUE = 4, 2

local known = redis.call('HMGET', meta, 'store_id', 'revision')
local revision = tonumber(known[2] or '0')
if known[1] ~= c.store_id or revision < c.seen then
  return {'store', known[1] or '', revision}
end

local request_key = FIRST_KIND + c.kinds
if c.once then
  local before = redis.call('GET', KEYS[request_key + 1]) or ''
  if before ~= ARGV[FIRST_VALUE + #c.puts + 1] then return {'again', revision, before} end
end

-- Checks first: nothing is written unless all hold.
local created = {}
for i, g in ipairs(c.guards) do
  local stored = redis.call('HGET', KEYS[FIRST_KIND + g[1]], g[2])
  local held, born = '0', nil
  if stored then held, born = string.match(stored, '^(%d+):(%d+):') end
  if tonumber(held) ~= g[3] then return {'guard', revision, i - 1} end
  created[g[1] .. ' ' .. g[2]] = born
end
for _, claim in ipairs(c.free) do
  local owner = redis.call('HGET', claims, claim)
  if owner then return {'claim', revision, claim, owner} end
end
for _, t in ipairs(c.take) do
  local owner = redis.call('HGET', claims, t[1])
  if owner and owner ~= t[2] and not (c.dropping[t[1]] == owner) then
    return {'claim', revision, t[1], owner}
  end
end

local time = redis.call('TIME')
local now = string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000))
if #c.puts + #c.deletes > 0 then
  revision = redis.call('HINCRBY', meta, 'revision', 1)
end
for _, d in ipairs(c.drop) do
  if redis.call('HGET', claims, d[1]) == d[2] then redis.call('HDEL', claims, d[1]) end
end
for _, t in ipairs(c.take) do redis.call('HSET', claims, t[1], t[2]) end
for _, d in ipairs(c.deletes) do redis.call('HDEL', KEYS[FIRST_KIND + d[1]], d[2]) end
for i, p in ipairs(c.puts) do
  local born = created[p[1] .. ' ' .. p[2]] or now
  redis.call('HSET', KEYS[FIRST_KIND + p[1]], p[2], revision .. ':' .. born .. ':' .. ARGV[FIRST_VALUE + i])
end
local value = FIRST_VALUE + #c.puts
if c.once then
  request_key, value = request_key + 1, value + 2
  redis.call('SET', KEYS[request_key], ARGV[value], 'PX', c.request_ttl_ms)
end
for _ = 1, c.remember do
  request_key, value = request_key + 1, value + 1
  redis.call('SET', KEYS[request_key], ARGV[value], 'PX', c.request_ttl_ms)
end
for _ = 1, c.forget do
  request_key = request_key + 1
  redis.call('DEL', KEYS[request_key])
end
if #c.puts + #c.deletes > 0 then
  redis.call('XADD', log, revision .. '-0', 't', now, 'w', ARGV[2])
  -- The log is kept by the number of its writes, for one entry may hold one or three thousand. A mark is set every
  -- sixteenth of that number; when there are more than sixteen, the log is cut at the oldest.
  local writes = redis.call('HINCRBY', meta, 'log_writes', #c.puts + #c.deletes)
  local marked = tonumber(redis.call('HGET', meta, 'log_marked') or '0')
  if writes - marked >= c.log_writes / 16 then
    redis.call('HSET', meta, 'log_marked', writes)
    if redis.call('RPUSH', marks, revision) > 16 then
      redis.call('XTRIM', log, 'MINID', redis.call('LPOP', marks) .. '-0')
    end
  end
end
return {'ok', revision, now}
