-- Shared part of every script over the registry of one address space.
--
-- KEYS[1] is <tag>:p and every other key is derived from the same hash tag.
--   <tag>:p         hash    name of a pool -> its family's generation (16), its own (16), time of creation (ms, 13), labels
--   <tag>:l         zset    names of pools, in lexical order
--   <tag>:z         zset    <4|6><first>-<last> of each allocated subnet; they never overlap, so neighbours tell all
--   <tag>:k         hash    <4|6><first>-<last>/<size> of a predefined stretch -> first subnet that may be free
--   <tag>:req:<id>  string  fingerprint of a request, and the pool's generation and name
--
-- A name is <4|6><first>/<length>[/<first>/<length>]: hexadecimal addresses (8 or 32 digits), lengths of 3 digits, the
-- second pair for the range.
local call, sub, fmt = redis.call, string.sub, string.format
local P = KEYS[1]
local TAG = sub(P, 1, -3)
local L, Z, K = TAG .. ':l', TAG .. ':z', TAG .. ':k'
local DAY = 86400

local now = tonumber(ARGV[1])
if now == 0 then
  local t = call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end

-- Returns the number with all bits below a prefix set, or cleared.
local function fill(hex, prefix, ones)
  local whole, rest = math.floor(prefix / 4), prefix % 4
  local head, tail = sub(hex, 1, whole), #hex - whole
  if rest > 0 then
    local step = 2 ^ (4 - rest)
    local digit = tonumber(sub(hex, whole + 1, whole + 1), 16)
    digit = digit - digit % step + (ones and step - 1 or 0)
    head, tail = head .. fmt('%x', digit), tail - 1
  end
  return head .. string.rep(ones and 'f' or '0', tail)
end

-- Returns the next number of the same width, or nil after the last one.
local function successor(hex)
  local head, digit, tail = string.match(hex, '^(%x*)([0-9a-e])(f*)$')
  if not digit then return nil end
  return head .. fmt('%x', tonumber(digit, 16) + 1) .. string.rep('0', #tail)
end

-- Returns an allocated subnet `<first>-<last>` (with its family's digit) that overlaps first..last, or nil.
local function find_overlap(version, first, last)
  local inside = call('ZRANGEBYLEX', Z, '[' .. version .. first, '(' .. version .. last .. '.', 'LIMIT', 0, 1)[1]
  if inside then return inside end
  local before = call('ZREVRANGEBYLEX', Z, '(' .. version .. first, '[' .. version, 'LIMIT', 0, 1)[1]
  if before and sub(before, 3 + #first) >= first then return before end
  return nil
end

-- Returns the names of all pools of a subnet.
local function pools_of(family)
  return call('ZRANGEBYLEX', L, '[' .. family, '(' .. family .. '0')
end
