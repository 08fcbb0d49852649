-- Shared part of the scripts over the book of hosts.
--
-- KEYS[1] is <tag>:live and every other key is derived from the same hash tag.
--   <tag>:beats            zset    host -> last heartbeat (ms), and how long it may be silent after it
--   <tag>:names            hash    host -> name in its agent's certificate, where that is not the host's id
--   <tag>:roster           hash    which hosts there are: store_id and revision of the controllers' store, names as JSON
--   <tag>:live             zset    host -> last heartbeat (ms), of hosts that report what they hold: a failover waits for them
--   <tag>:asserted:<epoch> set     hosts that have reported all they hold under a store epoch
--   <tag>:window:<epoch>   string  when the store epoch was first seen (ms):the newest heartbeat until then (ms)
-- ARGV[1] time in ms (0: the server's), ARGV[2] store epoch.
local call = redis.call
local LIVE = KEYS[1]
local TAG = string.sub(LIVE, 1, -6)
local BEATS, ASSERTED, WINDOW = TAG .. ':beats', TAG .. ':asserted:' .. ARGV[2], TAG .. ':window:' .. ARGV[2]
local WEEK = 604800

local now = tonumber(ARGV[1])
if now == 0 then
  local t = call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end

-- Notes when the epoch was first seen, before any heartbeat under it is. Returns that time, and the newest heartbeat until
-- then (0: there was none): while the store was away nobody could tell that he lives, however long that was.
local function window()
  local known = call('GET', WINDOW)
  if not known then
    local newest = call('ZREVRANGE', LIVE, 0, 0, 'WITHSCORES')
    known = string.format('%d:%d', now, math.min(now, tonumber(newest[2] or 0)))
    call('SET', WINDOW, known, 'EX', WEEK)
  end
  local since, newest = string.match(known, '^(%d+):(%d+)$')
  return tonumber(since), tonumber(newest)
end
