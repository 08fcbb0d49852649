-- Enters a pool into the registry of its address space.
-- ARGV[2] request id ('' none), [3] fingerprint, [4] and [5] generations for a new family and pool (16 each), [6] labels,
-- [7] `fixed`: [8] family digit, [9] first, [10] last, [11] name of the subnet, [12] name of the pool
--     `choose`: [8] family digit, [9] choices, then 3 of each: first, last, size; then 2 of each exclusion: first, last
-- Returns code, name and record; or what overlaps.
local mode, version = ARGV[7], ARGV[8]
local request_key
if ARGV[2] ~= '' then
  request_key = TAG .. ':req:' .. ARGV[2]
  local known = call('GET', request_key)
  if known then
    if sub(known, 1, #ARGV[3]) ~= ARGV[3] then return { 'REUSED' } end
    local generation, name = sub(known, #ARGV[3] + 1, #ARGV[3] + 16), sub(known, #ARGV[3] + 17)
    local record = call('HGET', P, name)
    -- The first answer stands while that very pool does; a pool released since is requested anew.
    if record and sub(record, 17, 32) == generation then return { 'OK', name, record } end
  end
end

local function enter(first, last, family, name)
  local siblings = pools_of(family)
  local family_generation = ARGV[4]
  if siblings[1] then family_generation = sub(call('HGET', P, siblings[1]), 1, 16) end
  local record = family_generation .. ARGV[5] .. fmt('%013.0f', now) .. ARGV[6]
  call('HSET', P, name, record)
  call('ZADD', L, 0, name)
  call('ZADD', Z, 0, version .. first .. '-' .. last)
  if request_key then call('SET', request_key, ARGV[3] .. ARGV[5] .. name, 'EX', DAY) end
  return { 'OK', name, record }
end

if mode == 'fixed' then
  local first, last, family, name = ARGV[9], ARGV[10], ARGV[11], ARGV[12]
  if call('HEXISTS', P, name) == 1 then return { 'OVERLAP', name } end
  local other = find_overlap(version, first, last)
  if other and (family == name or other ~= version .. first .. '-' .. last) then
    local width = #first
    return { 'OVERLAP', sub(other, 1, 1 + width), sub(other, 3 + width) }
  end
  return enter(first, last, family, name)
end

local choices, at = {}, 10
for index = 1, tonumber(ARGV[9]) do
  choices[index] = { first = ARGV[at], last = ARGV[at + 1], size = tonumber(ARGV[at + 2]) }
  at = at + 3
end
local excluded = {}
for index = at, #ARGV, 2 do excluded[#excluded + 1] = { ARGV[index], ARGV[index + 1] } end

local function find_excluded(first, last)
  for _, pair in ipairs(excluded) do
    if pair[1] <= last and pair[2] >= first then return pair[2] end
  end
  return nil
end

for _, choice in ipairs(choices) do
  local cursor = version .. choice.first .. '-' .. choice.last .. '/' .. choice.size
  local first = call('HGET', K, cursor) or choice.first
  -- Where the next search may begin: behind what is allocated, but not behind what only this request excludes.
  local frontier, fixed = first, false
  while first and first <= choice.last do
    local last = fill(first, choice.size, true)
    if last > choice.last then break end
    local other = find_overlap(version, first, last)
    local obstacle = other and sub(other, 3 + #first)
    if not obstacle then
      obstacle = find_excluded(first, last)
      if obstacle and not fixed then frontier, fixed = first, true end
    end
    if not obstacle then
      if not fixed then frontier = first end
      if frontier ~= choice.first then call('HSET', K, cursor, frontier) end
      local family = version .. first .. '/' .. fmt('%03d', choice.size)
      return enter(first, last, family, family)
    end
    first = successor(fill(obstacle > last and obstacle or last, choice.size, true))
  end
  if not fixed then call('HSET', K, cursor, first or choice.last) end
end
return { 'EXHAUSTED' }
