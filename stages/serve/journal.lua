-- journal.lua - the queue of many machines, as Redis keeps it: each call of journal_redis.c is one
-- run of this script, so each happens as a whole or not at all. ARGV[1] is the verb, ARGV[2] how the
-- channels of news begin; a verb's own words follow. The answer's first word is "ok" or says what is not.
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
--   sluice:stats        hash: jobs taken over, writes refused for their hold (fenced)
--
-- The order of claims (stages/serve/fair.h), for each priority P:
--   sluice:released:P   ids by the number of their claim
--   sluice:wait:P:OWNER ids by seq
--   sluice:owners:P     owners that wait: by their newest claim; before them all those without one,
--                       by their oldest job
--   sluice:last:P       hash: owner -> number of the newest claim
--
-- A call may come twice, when the answer to the first was lost: its nonce (`op`) is kept in the row
-- that it changed, and the second gets the same answer.
local K, call = 'sluice:', redis.call
local channel = ARGV[2]
local BEFORE = 4503599627370496 -- 2^52: more than any seq

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

-- The owner's place among those that wait in this priority.
local function rank(p, owner)
  local first = call('ZRANGE', wait_of(p, owner), 0, 0, 'WITHSCORES')
  if not first[1] then
    call('ZREM', K .. 'owners:' .. p, owner)
    return
  end
  local last = tonumber(call('HGET', K .. 'last:' .. p, owner) or 0)
  call('ZADD', K .. 'owners:' .. p, last > 0 and last or first[2] - BEFORE, owner)
end

local function enqueue(id)
  local r = call('HMGET', job(id), 'owner', 'priority', 'seq', 'claimed', 'created_s')
  local owner, p, seq, claimed = r[1], r[2], r[3], tonumber(r[4])
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

local verbs = {}

function verbs.open(version, model, store)
  local v, m, s = call('GET', K .. 'schema'), call('GET', K .. 'model'), call('GET', K .. 'store')
  if v and tonumber(v) > tonumber(version) then return {'newer', v} end
  local n = call('HMGET', K .. 'count', 'queued', 'running')
  if m and m ~= model and (n[1] or n[2]) then return {'model', m} end
  if s and s ~= store and call('EXISTS', K .. 'all') == 1 then return {'store'} end
  call('SET', K .. 'store', store)
  call('SET', K .. 'schema', version)
  call('SET', K .. 'model', model)
  return {'ok'}
end

function verbs.submit(op, id, owner, key, priority, created, request, most, most_of, ...)
  local k, known = job(id), #owner .. ':' .. owner .. ':' .. key
  local r = call('HMGET', k, 'state', 'op_submit')
  if r[1] and r[2] == op then return {'ok'} end
  if #key > 0 then
    local same = call('HGET', K .. 'keys', known)
    if same then return {'same', same} end
  end
  local waiting = tonumber(call('HGET', K .. 'count', 'queued') or 0)
  local of_owner = tonumber(call('HGET', K .. 'waiting_of', owner) or 0)
  if tonumber(most) > 0 and waiting >= tonumber(most) or
     tonumber(most_of) > 0 and of_owner >= tonumber(most_of) then
    return {'full', tostring(waiting), tostring(of_owner)}
  end
  if r[1] then return {'there'} end
  local seq = call('INCR', K .. 'seq')
  call('HSET', k, 'id', id, 'seq', seq, 'owner', owner, 'key', key, 'priority', priority,
       'created_s', created, 'started_s', 0, 'ended_s', 0, 'progress', 0, 'cancel_asked', 0,
       'attempts', 0, 'claimed', 0, 'fence', 0, 'code', 'OK', 'message', '', 'bytes', 0, 'hold', '',
       'worker', '', 'live', '', 'request', request, 'op_submit', op)
  for i = 1, select('#', ...), 2 do
    local name, file = select(i, ...)
    call('HSET', k, 'f:' .. name, file)
  end
  if #key > 0 then call('HSET', K .. 'keys', known, id) end
  call('ZADD', K .. 'all', seq, id)
  call('ZADD', K .. 'of:' .. owner, seq, id)
  tally('rows:' .. priority, owner, 1)
  moves(id, nil, 'queued')
  enqueue(id)
  news('queue', id)
  return {'ok'}
end

local function first_in_turn()
  local p = call('ZREVRANGE', K .. 'priorities', 0, 0)[1]
  if not p then return nil end
  local id = call('ZRANGE', K .. 'released:' .. p, 0, 0)[1]
  if id then return id end
  local owner = call('ZRANGE', K .. 'owners:' .. p, 0, 0)[1]
  return owner and call('ZRANGE', wait_of(p, owner), 0, 0)[1] or ''
end

function verbs.claim(hold, worker, now, lease)
  local mine = call('HGET', K .. 'holds', hold)
  if mine then return {'ok', call('HGETALL', job(mine))} end
  local id = first_in_turn()
  if not id then return {'busy'} end
  local k = job(id)
  local r = call('HMGET', k, 'owner', 'priority', 'claimed', 'started_s', 'state')
  if r[5] ~= 'queued' then return {'damaged', id} end
  local claimed, fence = tonumber(r[3]), call('INCR', K .. 'claims')
  if claimed == 0 then
    call('HSET', k, 'claimed', fence)
    call('HSET', K .. 'last:' .. r[2], r[1], fence)
  end
  dequeue(id, r[1], r[2], claimed)
  if r[4] == '0' then call('HSET', k, 'started_s', now) end
  call('HSET', k, 'hold', hold, 'fence', fence, 'worker', worker)
  call('HINCRBY', k, 'attempts', 1)
  call('HSET', K .. 'holds', hold, id)
  call('ZADD', K .. 'running', now_ms() + lease, id)
  moves(id, 'queued', 'running')
  news('state', id)
  return {'ok', call('HGETALL', k)}
end

-- Holds live on; the answer has for each 0 (it is another's), 1, or 2 (a cancel was asked for).
-- take: what nobody renews goes back to the queue.
function verbs.beat(name, lease, take, ...)
  local now, answer = now_ms(), {}
  call('ZADD', K .. 'servers', now, name)
  for i = 1, select('#', ...) do
    local id = call('HGET', K .. 'holds', (select(i, ...)))
    answer[i] = 0
    if id then
      call('ZADD', K .. 'running', 'XX', now + lease, id)
      answer[i] = call('HGET', job(id), 'cancel_asked') == '1' and 2 or 1
    end
  end
  local taken = 0
  if take == '1' then
    for _, id in ipairs(call('ZRANGEBYSCORE', K .. 'running', '-inf', now, 'LIMIT', 0, 64)) do
      put_back(id)
      call('HINCRBY', K .. 'stats', 'taken', 1)
      taken = taken + 1
    end
    call('ZREMRANGEBYSCORE', K .. 'servers', '-inf', now - 10 * lease)
  end
  return {'ok', taken, answer}
end

function verbs.release(op, id, hold)
  if call('HGET', job(id), 'op_release') == op then return {'ok'} end
  local no = refused(id, hold)
  if no then return no end
  call('HSET', job(id), 'op_release', op)
  put_back(id)
  return {'ok'}
end

function verbs.release_all(worker)
  local n = 0
  for _, id in ipairs(call('ZRANGE', K .. 'running', 0, -1)) do
    if call('HGET', job(id), 'worker') == worker then
      put_back(id)
      n = n + 1
    end
  end
  return {'ok', n}
end

function verbs.progress(id, hold, progress, live)
  if refused(id, hold) then return {'ok'} end
  if tonumber(progress) > tonumber(call('HGET', job(id), 'progress')) then
    call('HSET', job(id), 'progress', progress)
  end
  if #live > 0 then call('HSET', job(id), 'live', live) end
  news('step', id)
  return {'ok'}
end

function verbs.finish(op, id, hold, state, code, message, bytes, now)
  local k = job(id)
  if call('HGET', k, 'op_end') == op then return {'ok'} end
  local no = refused(id, hold)
  if no then return no end
  call('HDEL', K .. 'holds', hold)
  call('ZREM', K .. 'running', id)
  call('HSET', k, 'op_end', op, 'code', code, 'message', message, 'bytes', bytes, 'ended_s', now,
       'live', '')
  if state == 'completed' then call('HSET', k, 'progress', 1) end
  moves(id, 'running', state)
  call('ZADD', K .. 'ended', now, id)
  call('INCRBY', K .. 'bytes', bytes)
  news('state', id)
  return {'ok'}
end

-- File NAME of a job that the caller holds is this one from now on ('': there is none); of one that
-- it has ended, files may go. The answer has what it was before.
function verbs.file(id, hold, name, file)
  local k = job(id)
  local r = call('HMGET', k, 'state', 'hold', 'f:' .. name)
  if not (r[1] and ended(r[1]) and r[2] == hold and #file == 0) then
    local no = refused(id, hold)
    if no then return no end
    -- a version is called after the claim that made it
    if #file > 0 and file:match('^(%d+)%.') ~= call('HGET', k, 'fence') then
      call('HINCRBY', K .. 'stats', 'fenced', 1)
      return {'fenced', call('HGET', k, 'worker')}
    end
  end
  if #file > 0 then
    call('HSET', k, 'f:' .. name, file)
  else
    call('HDEL', k, 'f:' .. name)
  end
  return {'ok', r[3] or ''}
end

function verbs.get(id, everybody, owner)
  local state = state_for(id, everybody, owner)
  if not state or state == 'removed' then return {'none'} end
  return {'ok', call('HGETALL', job(id))}
end

function verbs.cancel(op, id, everybody, owner, now)
  local state, k = state_for(id, everybody, owner), job(id)
  if not state or state == 'removed' then return {'none'} end
  if call('HGET', k, 'op_end') == op then return {'ok', 'queued'} end
  if state == 'queued' then
    local r = call('HMGET', k, 'owner', 'priority', 'claimed')
    dequeue(id, r[1], r[2], tonumber(r[3]))
    call('HSET', k, 'op_end', op, 'code', 'CANCELLED', 'ended_s', now, 'message',
         'cancelled while it waited in the queue')
    moves(id, 'queued', 'cancelled')
    call('ZADD', K .. 'ended', now, id)
    call('INCRBY', K .. 'bytes', call('HGET', k, 'bytes'))
    news('state', id)
  elseif state == 'running' then
    call('HSET', k, 'cancel_asked', 1)
    news('cancel', id)
  end
  return {'ok', state}
end

local function forget_files(k)
  for _, field in ipairs(call('HKEYS', k)) do
    if field:sub(1, 2) == 'f:' then call('HDEL', k, field) end
  end
end

local function strike(id, state, now)
  local k = job(id)
  call('DECRBY', K .. 'bytes', call('HGET', k, 'bytes'))
  call('HSET', k, 'request', '', 'message', '', 'ended_s', now)
  forget_files(k)
  moves(id, state, 'removed')
  call('ZREM', K .. 'ended', id)
  call('ZADD', K .. 'removed', now, id)
  call('ZREM', K .. 'all', id)
  call('ZREM', K .. 'of:' .. call('HGET', k, 'owner'), id)
  news('state', id)
end

function verbs.remove(id, everybody, owner, now)
  local state = state_for(id, everybody, owner)
  if not state then return {'none'} end
  if state == 'queued' or state == 'running' then return {'not', state} end
  if state ~= 'removed' then strike(id, state, now) end
  return {'ok'}
end

function verbs.list(everybody, owner, after, most, newest)
  local of = K .. (everybody == '1' and 'all' or 'of:' .. owner)
  local low, high, rows = '-inf', '+inf', {}
  if #after > 0 then
    if not state_for(after, everybody, owner) then return {'none'} end
    local seq = call('HGET', job(after), 'seq')
    if newest == '1' then high = '(' .. seq else low = '(' .. seq end
  end
  local ids
  if newest == '1' then
    ids = call('ZREVRANGEBYSCORE', of, high, low, 'LIMIT', 0, most)
  else
    ids = call('ZRANGEBYSCORE', of, low, high, 'LIMIT', 0, most)
  end
  for i, id in ipairs(ids) do rows[i] = call('HGETALL', job(id)) end
  return {'ok', rows}
end

function verbs.position(id)
  local r = call('HMGET', job(id), 'state', 'owner', 'priority', 'claimed')
  if r[1] ~= 'queued' then return {'ok', -1} end
  local owner, p, n = r[2], r[3], 0
  for _, higher in ipairs(call('ZRANGEBYSCORE', K .. 'priorities', '(' .. p, '+inf')) do
    n = n + tonumber(call('HGET', K .. 'waiting', higher) or 0)
  end
  if tonumber(r[4]) > 0 then
    return {'ok', n + (call('ZRANK', K .. 'released:' .. p, id) or 0)}
  end
  n = n + call('ZCARD', K .. 'released:' .. p)
  local round = call('ZRANK', wait_of(p, owner), id) or 0
  local turn = call('ZRANK', K .. 'owners:' .. p, owner) or 0
  for i, other in ipairs(call('ZRANGE', K .. 'owners:' .. p, 0, -1)) do
    local most = round + (i - 1 < turn and 1 or 0)
    n = n + math.min(call('ZCARD', wait_of(p, other)), most)
  end
  return {'ok', n}
end

function verbs.count(lease)
  local first = call('ZRANGE', K .. 'queued', 0, 0)[1]
  return {'ok', call('HGETALL', K .. 'count'), call('GET', K .. 'bytes') or '0',
          first and call('HGET', job(first), 'created_s') or '0',
          call('HGETALL', K .. 'stats'),
          call('ZCOUNT', K .. 'servers', now_ms() - lease, '+inf')}
end

local function forget(id)
  local r = call('HMGET', job(id), 'owner', 'key', 'priority')
  if r[2] and #r[2] > 0 then
    call('HDEL', K .. 'keys', #r[1] .. ':' .. r[1] .. ':' .. r[2])
  end
  if r[1] then
    tally('rows:' .. r[3], r[1], -1)
    if call('HEXISTS', K .. 'rows:' .. r[3], r[1]) == 0 then
      call('HDEL', K .. 'last:' .. r[3], r[1])
      rank(r[3], r[1])
    end
  end
  call('DEL', job(id))
  call('ZREM', K .. 'removed', id)
  tally('count', 'removed', -1)
end

function verbs.expire(op, before, quota, forget_s, now)
  local due = call('GET', K .. 'expired')
  if due and due:sub(1, #op) == op then return {'ok', due:sub(#op + 2)} end
  local old = call('ZRANGEBYSCORE', K .. 'removed', '-inf', '(' .. forget_s, 'LIMIT', 0, 1000)
  for _, id in ipairs(old) do forget(id) end
  local first = call('ZRANGE', K .. 'ended', 0, 0, 'WITHSCORES')
  if not first[1] then return {'busy'} end
  local bytes = tonumber(call('GET', K .. 'bytes') or 0)
  if tonumber(first[2]) >= tonumber(before) and
     (tonumber(quota) == 0 or bytes <= tonumber(quota)) then
    return {'busy'}
  end
  strike(first[1], call('HGET', job(first[1]), 'state'), now)
  call('SET', K .. 'expired', op .. ' ' .. first[1])
  return {'ok', first[1]}
end

return verbs[ARGV[1]](unpack(ARGV, 3))
