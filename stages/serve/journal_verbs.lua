-- journal_verbs.lua - the calls of the queue of many machines; the second half of journal.lua,
-- which tells the keys.
local verbs = {}

function verbs.open(version, model, store)
  local v, m, s = call('GET', K .. 'schema'), call('GET', K .. 'model'), call('GET', K .. 'store')
  if v and tonumber(v) > tonumber(version) then return {'newer', v} end
  local n = call('HMGET', K .. 'count', 'queued', 'running')
  if m and m ~= model and (n[1] or n[2]) then return {'model', m} end
  if s and s ~= store and call('EXISTS', K .. 'all') == 1 then return {'store'} end
  if v == '1' then -- it had no classes
    for _, id in ipairs(call('ZRANGE', K .. 'queued', 0, -1)) do
      local r = call('HMGET', job(id), 'owner', 'priority', 'seq', 'claimed')
      join_class(id, r[1], r[2], r[3], tonumber(r[4]))
    end
  end
  call('SET', K .. 'store', store)
  call('SET', K .. 'schema', version)
  call('SET', K .. 'model', model)
  return {'ok'}
end

function verbs.submit(op, id, owner, key, priority, created, request, needs, most, most_each, ...)
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
     tonumber(most_each) > 0 and of_owner >= tonumber(most_each) then
    return {'full', tostring(waiting), tostring(of_owner)}
  end
  if r[1] then return {'there'} end
  local seq = call('INCR', K .. 'seq')
  call('HSET', k, 'id', id, 'seq', seq, 'owner', owner, 'key', key, 'priority', priority,
       'created_s', created, 'started_s', 0, 'ended_s', 0, 'progress', 0, 'cancel_asked', 0,
       'attempts', 0, 'claimed', 0, 'fence', 0, 'code', 'OK', 'message', '', 'bytes', 0, 'hold', '',
       'worker', '', 'live', '', 'request', request, 'needs', needs, 'deaths', 0, 'op_submit', op)
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
  if waiting < TOLD then news('queue', id) end
  return {'ok'}
end

-- Others go before this job, but not for ever; false: it is its turn now.
local function pass(id)
  local passed = tonumber(call('HGET', job(id), 'passed') or 0)
  if passed >= PASSED then return false end
  call('HSET', job(id), 'passed', passed + 1)
  return true
end

-- The first job of this priority that the worker can do. loaded: the LoRA that it has loaded, whose
-- jobs may go before others. idle: it runs nothing; a job that is to run alone waits for that.
local function first_for(p, offer, idle, loaded)
  local first, calm, same, looked
  looked = 0
  for _, class in ipairs(call('ZRANGE', K .. 'classes:' .. p, 0, CLASSES - 1)) do
    local needs = parts(class)
    if looked < LOOKED and fits(needs, offer) then
      looked = looked + 1
      local one = first_of(p, class)
      if one then
        one.alone = class:sub(-2) == ' !'
        if is_before(one, first) then first = one end
        if not one.alone and is_before(one, calm) then calm = one end
        if not one.alone and (needs and needs.loras or '-') == loaded and is_before(one, same) then
          same = one
        end
      end
    end
  end
  if first and first.alone and not idle then
    if not pass(first.id) then return nil, true end
    first = calm
  end
  if first and not first.alone and not first.released and same and same.id ~= first.id and
     pass(first.id) then
    first = same
  end
  return first and first.id
end
local function first_in_turn(offer, idle, loaded)
  for _, p in ipairs(call('ZREVRANGE', K .. 'priorities', 0, -1)) do
    local id, wait = first_for(p, offer, idle, loaded)
    if id or wait then return id end
  end
end

function verbs.claim(hold, worker, now, lease, offer, idle, loaded)
  local mine = call('HGET', K .. 'holds', hold)
  if mine then return {'ok', call('HGETALL', job(mine))} end
  local id = first_in_turn(parts(offer), idle == '1', loaded)
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
  call('HSET', k, 'hold', hold, 'fence', fence, 'worker', worker, 'since_s', now)
  call('HDEL', k, 'passed')
  call('HINCRBY', k, 'attempts', 1)
  call('HSET', K .. 'holds', hold, id)
  call('ZADD', K .. 'running', now_ms() + lease, id)
  moves(id, 'queued', 'running')
  news('state', id)
  return {'ok', call('HGETALL', k)}
end

-- Holds live on; the answer has for each 0 (it is another's), 1, or 2 (a cancel was asked for).
-- offer, says: what the server can, and tells of itself ('': nothing). take: what nobody renews
-- goes back to the queue, at most so often (retries).
function verbs.beat(name, lease, offer, says, take, retries, ...)
  local now, answer = now_ms(), {}
  call('ZADD', K .. 'servers', now, name)
  if #offer > 0 then call('ZADD', K .. 'offers', now, offer) end
  if #says > 0 and call('HGET', K .. 'says', name) ~= says then
    call('HSET', K .. 'says', name, says)
  end
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
      bereave(id, tonumber(retries))
      call('HINCRBY', K .. 'stats', 'taken', 1)
      taken = taken + 1
    end
    for _, gone in ipairs(call('ZRANGEBYSCORE', K .. 'servers', '-inf', now - 10 * lease,
                               'LIMIT', 0, 64)) do
      call('ZREM', K .. 'servers', gone)
      call('HDEL', K .. 'says', gone)
    end
    call('ZREMRANGEBYSCORE', K .. 'offers', '-inf', now - KEPT_MS)
  end
  return {'ok', taken, answer}
end

-- It ends by itself, and holds nothing.
function verbs.leave(name)
  call('ZREM', K .. 'servers', name)
  call('HDEL', K .. 'says', name)
  return {'ok'}
end

function verbs.release(op, id, hold)
  if call('HGET', job(id), 'op_release') == op then return {'ok'} end
  local no = refused(id, hold)
  if no then return no end
  call('HSET', job(id), 'op_release', op)
  put_back(id)
  return {'ok'}
end

-- The server before this one of the same name died.
function verbs.release_all(worker, retries)
  local n = 0
  for _, id in ipairs(call('ZRANGE', K .. 'running', 0, -1)) do
    if call('HGET', job(id), 'worker') == worker then
      bereave(id, tonumber(retries))
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

-- Files of a job that the caller holds, NAME and what it is from now on ('': there is none); of one
-- that it has ended, files may go. The answer has what each was before. Once a hand-over or a state
-- is kept, as many servers may die with the job again.
function verbs.files(id, hold, ...)
  local k, comes, kept, answer = job(id), false, false, {'ok'}
  local r = call('HMGET', k, 'state', 'hold', 'fence')
  for i = 1, select('#', ...), 2 do
    local name, file = select(i, ...)
    if #file > 0 then
      comes, kept = true, kept or name:match('%.safetensors$')
      -- a version is called after the claim that made it
      if r[1] == 'running' and r[2] == hold and file:match('^(%d+)%.') ~= r[3] then
        call('HINCRBY', K .. 'stats', 'fenced', 1)
        return {'fenced', call('HGET', k, 'worker')}
      end
    end
  end
  if comes or not (r[1] and ended(r[1]) and r[2] == hold) then
    local no = refused(id, hold)
    if no then return no end
  end
  for i = 1, select('#', ...), 2 do
    local name, file = select(i, ...)
    answer[#answer + 1] = call('HGET', k, 'f:' .. name) or ''
    if #file > 0 then
      call('HSET', k, 'f:' .. name, file)
    else
      call('HDEL', k, 'f:' .. name)
    end
  end
  if kept and (call('HGET', k, 'deaths') or '0') ~= '0' then call('HSET', k, 'deaths', 0) end
  return answer
end

function verbs.get(id, everybody, owner, lease)
  local state = state_for(id, everybody, owner)
  if not state or state == 'removed' then return {'none'} end
  return {'ok', told(id, lease, {})}
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

function verbs.list(everybody, owner, after, most, newest, lease)
  local of = K .. (everybody == '1' and 'all' or 'of:' .. owner)
  local low, high, rows, known = '-inf', '+inf', {}, {}
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
  for i, id in ipairs(ids) do rows[i] = told(id, lease, known) end
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

-- Jobs that wait and nobody takes: how many, and why one of them does.
local function stuck(lease)
  local offers, n, why = offers_of(lease), 0, ''
  local classes = call('HGETALL', K .. 'needs')
  for i = 1, #classes, 2 do
    local is = reason(classes[i], offers)
    if #is > 0 then
      n = n + tonumber(classes[i + 1])
      if #why == 0 or is < why then why = is end
    end
  end
  return n, why
end

function verbs.count(lease)
  local first = call('ZRANGE', K .. 'queued', 0, 0)[1]
  local n, why = stuck(lease)
  return {'ok', call('HGETALL', K .. 'count'), call('GET', K .. 'bytes') or '0',
          first and call('HGET', job(first), 'created_s') or '0',
          call('HGETALL', K .. 'stats'),
          call('ZCOUNT', K .. 'servers', now_ms() - lease, '+inf'), n, why}
end

-- Does a worker that is up, or one that was within a day, offer what is needed?
function verbs.offered(needs, lease)
  local n, all = parts(needs), {}
  for i, text in ipairs(call('ZRANGE', K .. 'offers', 0, -1)) do all[i] = parts(text) end
  local function test(o) return fits(n, o) end
  return {'ok', any(offers_of(lease), test) and 1 or 0, any(all, test) and 1 or 0}
end

-- Servers by their last beat, the newest first, what runs, and what waits longest; at most so many
-- of each.
function verbs.fleet(most_servers, most_jobs, most_waiting, lease)
  local now, servers, jobs, waiting = now_ms(), {}, {}, {}
  local offers = offers_of(lease)
  local heard = call('ZREVRANGE', K .. 'servers', 0, most_servers - 1, 'WITHSCORES')
  for i = 1, #heard, 2 do
    servers[#servers + 1] = {heard[i], tostring(now - heard[i + 1]),
                             call('HGET', K .. 'says', heard[i]) or ''}
  end
  for i, id in ipairs(call('ZRANGE', K .. 'running', 0, most_jobs - 1)) do
    local r = call('HMGET', job(id), 'worker', 'owner', 'live', 'since_s', 'attempts', 'progress')
    jobs[i] = {id, r[1] or '', r[2] or '', r[3] or '', r[4] or '0', r[5] or '0', r[6] or '0'}
  end
  for i, id in ipairs(call('ZRANGE', K .. 'queued', 0, most_waiting - 1)) do
    local r = call('HMGET', job(id), 'owner', 'created_s', 'priority', 'attempts')
    waiting[i] = {id, r[1] or '', r[2] or '0', r[3] or '0', r[4] or '0',
                  reason(class_of(id), offers)}
  end
  return {'ok', servers, jobs, call('ZCARD', K .. 'servers'), call('ZCARD', K .. 'running'),
          waiting}
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
