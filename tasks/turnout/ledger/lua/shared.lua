-- What the scripts share. Put before each of them, after `now_ms`, VERSION and MESSAGE (a template, `message.py`).
local NOW = now_ms()

-- A job at work is held: by one worker, until its lease ends.
local function is_held(state) return state == 'leased' or state == 'calling' end
local function is_waiting(state) return state == 'queued' or state == 'delayed' end

-- Add an event, given as the inside of a JSON object, to the job's story. Long stories lose their beginning.
local function tell(story, event)
  local length = redis.call('RPUSH', story, '{"at":' .. NOW .. ',' .. event .. '}')
  if length > 200 then redis.call('LTRIM', story, -200, -1) end
end

-- A lane's list is sorted by `place`, a time (ms) that stands in each message: at the back it is the time now, at
-- the front the place of the message overtaken. `pending` has the job at the same place. So a queued job whose place
-- is before the one now at the front has no message any more: it was lost with the worker that had fetched it.
local function front_place(queue)
  local first = redis.call('LINDEX', queue, -1)
  return first and tonumber(string.match(first, '"place":(%d+)'))
end

-- Taking turns: of one tenant's jobs only so many at a time stand in a lane, `each`. The others wait in line, the
-- first accepted first, and each that is claimed brings the next; so a flood is no longer to those behind it than a
-- handful. `turns` and `line` are ordered by text: LANE TENANT ACCEPTED ID.
local function turns_left(whose, turns, each)
  local most = tonumber(redis.call('GET', each) or TURNS)
  return most - redis.call('ZLEXCOUNT', turns, '[' .. whose, '(' .. whose .. ':')
end

local function has_turn(job, id, turns, line, each)
  local lane, tenant, accepted = unpack(redis.call('HMGET', job, 'lane', 'tenant', 'accepted_ms'))
  local whose = lane .. ' ' .. (tenant or '') .. ' '
  local free = turns_left(whose, turns, each) > 0
  local turn = whose .. accepted .. ' ' .. id
  redis.call('HSET', job, 'turn', turn)
  redis.call('ZADD', free and turns or line, 0, turn)
  return free
end

-- Give a turn that came free to the next in line, whose message is still to be published: until then it counts as
-- queued without one, so that it is found should nobody do it. `pendings` are those of all lanes.
local function next_turn(whose, turns, line, pendings)
  local turn = redis.call('ZRANGE', line, '[' .. whose, '(' .. whose .. ':', 'BYLEX', 'LIMIT', 0, 1)[1]
  if not turn then return nil end
  local lane, id = string.match(turn, '^(%S+) %S* %d+ (.*)$')
  redis.call('ZREM', line, turn)
  redis.call('ZADD', turns, 0, turn)
  for _, pending in ipairs(pendings) do
    if string.sub(pending, -#lane) == lane then redis.call('ZADD', pending, NOW, id) end
  end
  return id
end

local function end_turn(job, turn, turns, line)
  redis.call('HDEL', job, 'turn')
  redis.call('ZREM', turns, turn)
  redis.call('ZREM', line, turn)
end

-- Parked jobs that wait for the same thing stand in one line, the first accepted first: `parked` is ordered by text,
-- LINE ACCEPTED ID. Only the first of a line looks for room, at the time that `delayed` has for the line, and each that
-- finds it brings others; so those behind cost nothing while they wait.
local function line_of(spot) return string.match(spot, '^%S+') end

local function park(job, id, line, wait, delayed, parked)
  local spot = line .. ' ' .. redis.call('HGET', job, 'accepted_ms') .. ' ' .. id
  redis.call('HSET', job, 'state', 'delayed', 'spot', spot)
  redis.call('ZADD', parked, 0, spot)
  redis.call('ZADD', delayed, 'LT', NOW + wait, line)
end

local function unpark(job, spot, delayed, parked)
  local line = line_of(spot)
  redis.call('HDEL', job, 'spot')
  redis.call('ZREM', parked, spot)
  if redis.call('ZLEXCOUNT', parked, '[' .. line .. ' ', '(' .. line .. '!') == 0 then
    redis.call('ZREM', delayed, line)
  end
end

-- As JSON, without its quotes.
local function quoted(text) return string.sub(cjson.encode(text), 2, -2) end

-- Queue a job and push its message: on the lane's front where it has had its turn already, else on its back.
local function publish(job, id, pending, queue, at_front)
  local lane, label, embed, requeues, token =
    unpack(redis.call('HMGET', job, 'lane', 'label', 'embed', 'requeues', 'token'))
  local place = at_front and front_place(queue) or NOW
  redis.call('HSET', job, 'state', 'queued', 'queued_ms', NOW)
  redis.call('ZADD', pending, place, id)
  local message = string.gsub(MESSAGE, '<(%w+)>', {
    id = quoted(id), bodyid = quoted(quoted(id)), embed = quoted(embed or '{}'),
    lane = lane, label = quoted(label), retries = requeues, place = place,
    tag = NOW .. ':' .. token .. ':' .. quoted(id),  -- Celery keeps apart by it what it has fetched
  })
  redis.call(at_front and 'RPUSH' or 'LPUSH', queue, message)
end
