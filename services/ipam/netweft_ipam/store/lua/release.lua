-- Gives addresses of one family back.
-- ARGV[5] request id ('' none), [6] fingerprint, [7] range of the pool, [8] quarantine (ms), then 3 of each item: ref,
-- owner's key ('' any), epoch ('0' any).
-- Returns code, statuses (one digit each) and words as JSON: the holder or the epoch that stands in the way.
local FREE, NOT_THE_OWNER, STALE_EPOCH = '0', '1', '2'

local meta = call('HMGET', M, 'g', 'p:' .. ARGV[7])
if not (meta[1] and meta[2]) then return { 'NOPOOL' } end
local remember
if ARGV[5] ~= '' then
  remember = request_key(meta[1], ARGV[5])
  local known = call('GET', remember)
  if known then
    if sub(known, 1, #ARGV[6]) ~= ARGV[6] then return { 'REUSED' } end
    return { 'OK', sub(known, #ARGV[6] + 1) }
  end
end

local quarantine = tonumber(ARGV[8])
local out, words = {}, {}
for index = 9, #ARGV, 3 do
  local ref, key, epoch = ARGV[index], ARGV[index + 1], ARGV[index + 2]
  local record = find_record(ref)
  local lease = record and decode(record)
  local status = FREE
  if lease and lease.held then
    if key ~= '' and key ~= lease.key then
      status, words[#words + 1] = NOT_THE_OWNER, lease.key
    elseif epoch ~= '0' and tonumber(epoch) ~= lease.epoch then
      status, words[#words + 1] = STALE_EPOCH, fmt('%.0f', lease.epoch)
    else
      release(ref, lease, quarantine, RELEASED)
    end
  end
  out[#out + 1] = status
end
flush()
local answer = concat(out) .. (#words > 0 and cjson.encode(words) or '[]')
if remember then call('SET', remember, ARGV[6] .. answer, 'EX', DAY) end
return { 'OK', answer }
