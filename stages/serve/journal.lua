-- journal.lua - the queue of many machines, as Redis keeps it: its keys, and whose turn it is.
-- journal_verbs.lua is the other half of the script, the calls. Each call of journal_redis.c is one
-- run of it, so each happens as a whole or not at all. ARGV[1] is the verb, ARGV[2] how channels
-- of news begin; a verb's own words follow. The answer's first word is "ok" or says what is not.
--
--   sluice:job:ID       hash: a row; f:NAME its files (VERSION BYTES); hold: who may change it now
--   sluice:keys         hash: clients' keys -> id
--   sluice:holds        hash: hold -> id, of RUNNING jobs. A hold is a word that nobody uses twice
--   sluice:running      id by the end of its lease, ms of Redis's clock
--   sluice:queued       id by created_s;   sluice:ended, removed   by the time of it
--   sluice:all, of:OWNER   ids by seq, as lists have them
--   sluice:count, waiting, waiting_of, rows:P   hashes: jobs by state; queued by priority, by
--                       owner; kept rows by owner
--   sluice:bytes, seq, claims   counters: folders of ended jobs, submissions, claims
--   sluice:servers      servers by the time of their last beat
--   sluice:says         hash: server -> what it tells of itself
--   sluice:offers       what workers can, by the time of the last beat of one that can so much
--   sluice:stats        hash: jobs taken over, given up, writes refused for their hold (fenced)
--
-- The order of claims (stages/serve/fair.h), for each priority P, as places are told:
--   sluice:released:P   ids by the number of their claim
--   sluice:wait:P:OWNER ids by seq
--   sluice:owners:P     owners that wait: by their newest claim; before them all those without one,
--                       by their oldest job
--   sluice:last:P       hash: owner -> number of the newest claim
--
-- The same for each CLASS of jobs, those that want the same of a worker: a claim looks at the first
-- of each class that the worker can do, so jobs that it cannot do cost it nothing.
--   sluice:classes:P         classes that wait
--   sluice:back:P:CLASS      ids by the number of their claim
--   sluice:can:P:CLASS:OWNER ids by seq
--   sluice:turns:P:CLASS     owners by their place in it, which may be an older, smaller one: it is
--                            put right when the owner comes first
--   sluice:needs             hash: CLASS -> how many wait
-- Needs, and what a worker offers, are "PIXELS FRAMES PRECISIONS LORAS", lists with commas between,
-- '-' none; needs that are '*' are anybody's. A class is a job's needs, '-' without any, and ' !'
-- behind them for a job that is to run alone.
--
-- A call may come twice, when the answer to the first was lost: its nonce (`op`) is kept in the row
-- that it changed, and the second gets the same answer.

-- Most claims find nothing, of a thousand idle workers that hear of one job all but one: they are
-- answered before the rest is read.
if ARGV[1] == 'claim' and redis.call('EXISTS', 'sluice:priorities') == 0 and
   redis.call('HEXISTS', 'sluice:holds', ARGV[3]) == 0 then
  return {'busy'}
end

local K, call = 'sluice:', redis.call
local channel = ARGV[2]
local BEFORE = 4503599627370496 -- 2^52: more than any seq
local ALONE = 2 -- so many servers died with a job: it runs alone (as SL_JOURNAL_ALONE)
local PASSED = 8 -- how often others go before the job whose turn it is
local CLASSES = 1024 -- classes that a claim knows: those that wait longest
local LOOKED = 64 -- of those that the worker can do, how many it looks at
local TOLD = 16 -- where so many wait, all workers have been told of work: one more tells nobody
local KEPT_MS = 86400000 -- how long it is remembered what a worker could that is gone

local function job(id) return K .. 'job:' .. id end
-- Who runs jobs hears of work (queue, cancel); who shows them hears of all else, too.
local function news(what, id)
  local work = what == 'queue' or what == 'cancel'
  call('PUBLISH', channel .. (work and ':work' or ':show'), what .. ' ' .. id)
end
local function tally(hash, field, by)
  if call('HINCRBY', K .. hash, field, by) <= 0 then call('HDEL', K .. hash, field) end
end
local function now_ms()
  local t = call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end
local function moves(id, from, to)
  if from then tally('count', from, -1) end
  tally('count', to, 1)
  call('HSET', job(id), 'state', to)
end
local function ended(state)
  return state == 'completed' or state == 'failed' or state == 'cancelled'
end
local function wait_of(p, owner) return K .. 'wait:' .. p .. ':' .. owner end

-- The owner's place among those that wait in this priority; first: seq of its oldest job.
local function place(p, owner, first)
  local last = tonumber(call('HGET', K .. 'last:' .. p, owner) or 0)
  return last > 0 and last or first - BEFORE
end
local function rank(p, owner)
  local first = call('ZRANGE', wait_of(p, owner), 0, 0, 'WITHSCORES')
  if first[1] then
    call('ZADD', K .. 'owners:' .. p, place(p, owner, first[2]), owner)
  else
    call('ZREM', K .. 'owners:' .. p, owner)
  end
end

-- ---- classes: what a job needs, what a worker offers ----

local function class_of(id)
  local r = call('HMGET', job(id), 'needs', 'deaths')
  local needs = r[1] and #r[1] > 0 and r[1] or '-'
  return tonumber(r[2] or 0) >= ALONE and needs .. ' !' or needs
end
local function parts(text)
  local pixels, frames, precision, loras = text:match('^(%d+) (%d+) (%S+) (%S+)')
  return pixels and {pixels = tonumber(pixels), frames = tonumber(frames), precision = precision,
                     loras = loras}
end
local function has(list, word)
  return word == '*' or (',' .. list .. ','):find(',' .. word .. ',', 1, true) ~= nil
end
local function has_all(list, words)
  if words == '-' then return true end
  for word in words:gmatch('[^,]+') do
    if not has(list, word) then return false end
  end
  return true
end
-- An offer that is none is of a worker that can all; needs that are none are anybody's.
local function fits(needs, offer)
  return not needs or not offer or
         needs.pixels <= offer.pixels and needs.frames <= offer.frames and
         has(offer.precision, needs.precision) and has_all(offer.loras, needs.loras)
end

-- What workers that are up offer.
local function offers_of(lease)
  local all = {}
  for i, text in ipairs(call('ZRANGEBYSCORE', K .. 'offers', now_ms() - lease, '+inf')) do
    all[i] = parts(text)
  end
  return all
end
local function most_of(offers, field)
  local most = 0
  for _, o in ipairs(offers) do most = math.max(most, o[field]) end
  return most
end
local function any(offers, test)
  for _, o in ipairs(offers) do
    if test(o) then return true end
  end
  return false
end
-- Why none of them takes it; '' one does.
local function reason(class, offers)
  if #offers == 0 then return 'no worker is up' end
  local n = parts(class)
  if any(offers, function(o) return fits(n, o) end) then return '' end
  local why
  if n.pixels > most_of(offers, 'pixels') then
    why = n.pixels .. ' pixels a frame, want at most ' .. most_of(offers, 'pixels')
  elseif n.frames > most_of(offers, 'frames') then
    why = n.frames .. ' frames, want at most ' .. most_of(offers, 'frames')
  elseif not any(offers, function(o) return has(o.precision, n.precision) end) then
    why = 'none computes in ' .. n.precision
  elseif not any(offers, function(o) return has_all(o.loras, n.loras) end) then
    why = 'none has LoRA ' .. n.loras
  else
    why = 'none has at once ' .. n.pixels .. ' pixels, ' .. n.frames .. ' frames, ' ..
          n.precision .. (n.loras ~= '-' and ', LoRA ' .. n.loras or '')
  end
  return 'no worker that is up takes it: ' .. why
end

local function can_of(p, class, owner) return K .. 'can:' .. p .. ':' .. class .. ':' .. owner end
local function turns_of(p, class) return K .. 'turns:' .. p .. ':' .. class end
local function back_of(p, class) return K .. 'back:' .. p .. ':' .. class end

local function join_class(id, owner, p, seq, claimed)
  local class = class_of(id)
  call('ZADD', K .. 'classes:' .. p, 'NX', seq, class)
  tally('needs', class, 1)
  if claimed > 0 then
    call('ZADD', back_of(p, class), claimed, id)
  else
    call('ZADD', can_of(p, class, owner), seq, id)
    call('ZADD', turns_of(p, class), 'NX', place(p, owner, seq), owner)
  end
end
local function leave_class(id, owner, p, claimed)
  local class = class_of(id)
  tally('needs', class, -1)
  if claimed > 0 then
    call('ZREM', back_of(p, class), id)
  else
    call('ZREM', can_of(p, class, owner), id)
    if call('EXISTS', can_of(p, class, owner)) == 0 then
      call('ZREM', turns_of(p, class), owner)
    end
  end
  if call('EXISTS', turns_of(p, class), back_of(p, class)) == 0 then
    call('ZREM', K .. 'classes:' .. p, class)
  end
end

-- The first job of a class: its id, and what it is ordered by (released ones before all others).
local function first_of(p, class)
  local back = call('ZRANGE', back_of(p, class), 0, 0, 'WITHSCORES')
  if back[1] then return {id = back[1], released = true, turn = tonumber(back[2]), seq = 0} end
  local turns = turns_of(p, class)
  while true do
    local top = call('ZRANGE', turns, 0, 0, 'WITHSCORES')
    if not top[1] then return nil end
    local head = call('ZRANGE', can_of(p, class, top[1]), 0, 0, 'WITHSCORES')
    if not head[1] then
      call('ZREM', turns, top[1])
    else
      local is = place(p, top[1], head[2])
      if is == tonumber(top[2]) then
        return {id = head[1], released = false, turn = is, seq = tonumber(head[2])}
      end
      call('ZADD', turns, is, top[1])
    end
  end
end
local function is_before(a, b)
  if not b then return true end
  if a.released ~= b.released then return a.released end
  if a.turn ~= b.turn then return a.turn < b.turn end
  return a.seq < b.seq
end

local function enqueue(id)
  local r = call('HMGET', job(id), 'owner', 'priority', 'seq', 'claimed', 'created_s')
  local owner, p, seq, claimed = r[1], r[2], r[3], tonumber(r[4])
  join_class(id, owner, p, seq, claimed)
  call('ZADD', K .. 'priorities', p, p)
  tally('waiting', p, 1)
  tally('waiting_of', owner, 1)
  call('ZADD', K .. 'queued', r[5], id)
  if claimed > 0 then
    call('ZADD', K .. 'released:' .. p, claimed, id)
  else
    call('ZADD', wait_of(p, owner), seq, id)
    rank(p, owner)
  end
end

local function dequeue(id, owner, p, claimed)
  tally('waiting', p, -1)
  tally('waiting_of', owner, -1)
  if call('HEXISTS', K .. 'waiting', p) == 0 then call('ZREM', K .. 'priorities', p) end
  call('ZREM', K .. 'queued', id)
  leave_class(id, owner, p, claimed)
  if claimed > 0 then
    call('ZREM', K .. 'released:' .. p, id)
  else
    call('ZREM', wait_of(p, owner), id)
    rank(p, owner)
  end
end

-- RUNNING no more: nobody holds it.
local function let_go(id)
  local hold = call('HGET', job(id), 'hold')
  if hold then call('HDEL', K .. 'holds', hold) end
  call('ZREM', K .. 'running', id)
end
local function put_back(id)
  let_go(id)
  call('HSET', job(id), 'hold', '', 'worker', '')
  moves(id, 'running', 'queued')
  enqueue(id)
  news('queue', id)
end

-- Its server died, or was silent for too long. most: so often it is tried again without a step that
-- was kept between (0: without an end).
local function give_up(id, deaths)
  local k, bytes = job(id), 0
  local r, row = call('HMGET', k, 'cancel_asked', 'hold'), call('HGETALL', k)
  local state = r[1] == '1' and 'cancelled' or 'failed'
  for i = 1, #row, 2 do
    if row[i]:sub(1, 2) == 'f:' then
      bytes = bytes + (tonumber(row[i + 1]:match(' (%d+)$')) or 0)
    end
  end
  let_go(id)
  local now = math.floor(now_ms() / 1000)
  call('HSET', k, 'hold', '', 'worker', '', 'live', '', 'ended_s', now, 'bytes', bytes,
       'code', state == 'failed' and 'GONE' or 'CANCELLED', 'message', state == 'failed' and
       deaths .. ' times its server died while it ran, and no step was kept between: it is not ' ..
       'tried again (serve.retries)' or 'cancelled')
  moves(id, 'running', state)
  call('ZADD', K .. 'ended', now, id)
  call('INCRBY', K .. 'bytes', bytes)
  call('HINCRBY', K .. 'stats', 'given_up', 1)
  news('state', id)
end
local function bereave(id, most)
  local deaths = call('HINCRBY', job(id), 'deaths', 1)
  if most > 0 and deaths > most then
    give_up(id, deaths)
  else
    put_back(id)
  end
end

-- A row as it is told: of one that waits, and that nobody takes, also why.
local function told(id, lease, known)
  local row = call('HGETALL', job(id))
  if call('HGET', job(id), 'state') ~= 'queued' then return row end
  known.offers = known.offers or offers_of(lease)
  local class = class_of(id)
  known[class] = known[class] or reason(class, known.offers)
  row[#row + 1] = 'waits'
  row[#row + 1] = known[class]
  return row
end

-- Is the caller's hold that of the RUNNING job? Else what to answer.
local function refused(id, hold)
  local r = call('HMGET', job(id), 'state', 'hold', 'worker')
  if not r[1] then return {'none'} end
  if r[1] == 'running' and r[2] == hold then return nil end
  if #hold > 0 and r[2] ~= hold then call('HINCRBY', K .. 'stats', 'fenced', 1) end
  if r[1] ~= 'running' then return {'not', r[1]} end
  return {'fenced', r[3]}
end

-- May this owner see it? everybody: '1'.
local function state_for(id, everybody, owner)
  local r = call('HMGET', job(id), 'state', 'owner')
  if r[1] and (everybody == '1' or r[2] == owner) then return r[1] end
end

