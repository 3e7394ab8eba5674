-- What the scripts share. Put before each of them, after `now_ms` and the constants of `operations.py`.
-- Keys are found by the names under which a script lists them.
local NOW = now_ms()

-- A job at work is held: by one worker, until its lease ends.
local function is_held(state) return state == 'leased' or state == 'calling' end
local function is_live(state) return is_held(state) or state == 'queued' or state == 'delayed' end

-- Fields of the job's record, false for what it has not.
local function record(...) return unpack(redis.call('HMGET', KEYS.job, ...)) end

local function begins(text, with) return string.sub(text, 1, #with) == with end

-- Where in an index that is ordered by text the members begin and end that have these words, and a time behind them.
local function under(words) return '[' .. words .. ' ', '(' .. words .. ' :' end

local function first_in(index, from, to)
  return redis.call('ZRANGE', index, from, to, 'BYLEX', 'LIMIT', 0, 1)[1]
end

-- Add an event, given as the inside of a JSON object, to the job's story. Long stories lose their beginning.
local function tell(event)
  local length = redis.call('RPUSH', KEYS.story, '{"at":' .. NOW .. ',' .. event .. '}')
  if length > 200 then redis.call('LTRIM', KEYS.story, -200, -1) end
end

-- The keys of a lane: its pending jobs, and its queue, which has its name. A record with another word for it is
-- somebody's trick: it counts as of the first lane, so that it stands in nobody's way.
local function of_lane(lane)
  local lanes, place = #KEYS.all_lanes / 2, 1
  for i = 1, lanes do
    if KEYS.all_lanes[lanes + i] == lane then place = i end
  end
  return KEYS.all_lanes[place], KEYS.all_lanes[lanes + place]
end

-- Publish to a job's watchers or readers, on channels of clients alone. Whoever submits jobs may write such lists, and
-- choose an id that is an order to Celery's remote control; who settles the job may publish more than they.
local function tell_all(inboxes, what)
  local of_clients = string.match(KEYS.job, '^.-:') .. 'inbox:'
  for inbox in string.gmatch(inboxes or '', '%S+') do
    if begins(inbox, of_clients) then redis.call('PUBLISH', inbox, what) end
  end
end

-- A lane's list is sorted by `place`, a time (ms) that stands in each message: at the back it is the time now, at
-- the front the place of the message overtaken. `pending` has the job at the same place. So a queued job whose place
-- is before the one now at the front has no message any more: it was lost with the worker that had fetched it.
-- A plain Celery message has no place; at the front it counts as before all queued jobs, so that none looks lost.
local function front_place(pending, queue)
  local first = redis.call('LINDEX', queue, -1)
  local place = string.match(first or '', '"place":%s*(%d+)')
  local lowest = first and not place and redis.call('ZRANGE', pending, 0, 0, 'WITHSCORES')[2]
  return math.min(NOW, place or lowest or NOW)
end

-- Taking turns: of one tenant's jobs only so many at a time stand in a lane, `turns_each`. The others wait in line, the
-- first accepted first, and each that is claimed brings the next; so a flood is no longer to those behind it than a
-- handful. `turns` and `in_line` are ordered by text: LANE TENANT ACCEPTED ID.
local function whose_turn(turn) return string.match(turn, '^(%S+ %S*) ') end

local function turns_left(whose)
  local most = tonumber(redis.call('GET', KEYS.turns_each) or TURNS)
  return most - redis.call('ZLEXCOUNT', KEYS.turns, under(whose))
end

-- Line a queued job up; returns whether it has a turn at once, as one of no tenant always has.
local function take_turn(id)
  local lane, tenant, accepted = record('lane', 'tenant', 'accepted_ms')
  if not tenant then return true end
  local free = turns_left(lane .. ' ' .. tenant) > 0
  local turn = table.concat({lane, tenant, accepted, id}, ' ')
  redis.call('HSET', KEYS.job, 'turn', turn)
  redis.call('ZADD', free and KEYS.turns or KEYS.awaiting_turn, 0, turn)
  return free
end

-- Give a turn that came free to the next in line, whose message is still to be published: until then it counts as
-- queued without one, so that it is found should nobody do it.
local function next_turn(whose)
  local turn = first_in(KEYS.awaiting_turn, under(whose))
  if not turn then return nil end
  local lane, id = string.match(turn, '^(%S+) %S* %d+ (.*)$')
  redis.call('ZREM', KEYS.awaiting_turn, turn)
  redis.call('ZADD', KEYS.turns, 0, turn)
  redis.call('ZADD', (of_lane(lane)), NOW, id)
  return id
end

local function end_turn(turn)
  redis.call('HDEL', KEYS.job, 'turn')
  redis.call('ZREM', KEYS.turns, turn)
  redis.call('ZREM', KEYS.awaiting_turn, turn)
end

-- Parked jobs that wait for the same thing stand in one line, the first accepted first: `parked` is ordered by text,
-- LINE ACCEPTED ID. Only the first of a line looks for room, at the time that `delayed` has for the line, and each that
-- finds some wakes others; so those behind cost nothing while they wait. A time of 0: something has changed.
local function line_of(spot) return string.match(spot, '^%S+') end

local function first_of(line) return first_in(KEYS.parked, under(line)) end

local function park(id, line, wait)
  local spot = table.concat({line, record('accepted_ms'), id}, ' ')
  redis.call('HSET', KEYS.job, 'state', 'delayed', 'spot', spot)
  redis.call('ZADD', KEYS.parked, 0, spot)
  -- The first has just looked, so the line waits as long as it says, and no shorter because of those behind it or of
  -- what was to happen had it not come back. But it may have looked before the change.
  if first_of(line) == spot and redis.call('ZSCORE', KEYS.delayed, line) ~= '0' then
    redis.call('ZADD', KEYS.delayed, NOW + wait, line)
  end
end

local function unpark(spot)
  local line = line_of(spot)
  redis.call('HDEL', KEYS.job, 'spot')
  redis.call('ZREM', KEYS.parked, spot)
  if not first_of(line) then redis.call('ZREM', KEYS.delayed, line) end
end

-- End a worker's hold of a job that goes on. Returns whether it had it.
local function let_go(id, token, progress)
  local state, current = record('state', 'token')
  if not is_held(state) or token ~= current then return false end
  redis.call('HSET', KEYS.job, 'progress', progress)
  redis.call('ZREM', KEYS.job_leases, id)
  return true
end

local function has_lapsed(id, state)
  return is_held(state) and tonumber(redis.call('ZSCORE', KEYS.job_leases, id)) <= NOW
end

-- Values of RESULT, nothing of a job that goes on. Of a success, Celery's record has the result.
local function result_of()
  local values = {record(RESULT())}
  if values[2] and not values[1] then values[1] = redis.call('GET', KEYS.result) end
  return values
end

-- As JSON, without its quotes.
local function quoted(text) return string.sub(cjson.encode(text), 2, -2) end

-- Push a job's message on its lane's list: on the front where it has had its turn already, else on the back. Returns the
-- lane's pending jobs, and the message's place.
local function push(id, at_front)
  local lane, label, embed, requeues, token = record('lane', 'label', 'embed', 'requeues', 'token')
  local pending, queue = of_lane(lane)
  local place = at_front and front_place(pending, queue) or NOW
  local message = string.gsub(MESSAGE, '<(%w+)>', {
    id = quoted(id), bodyid = quoted(quoted(id)), embed = quoted(embed or '{}'),
    lane = lane, label = quoted(label), retries = requeues, place = place,
    tag = NOW .. ':' .. token .. ':' .. quoted(id),  -- Celery keeps apart by it what it has fetched
  })
  redis.call(at_front and 'RPUSH' or 'LPUSH', queue, message)
  return pending, place
end

-- Queue a job, with its message.
local function publish(id, at_front)
  local pending, place = push(id, at_front)
  redis.call('HSET', KEYS.job, 'state', 'queued', 'queued_ms', NOW)
  redis.call('ZADD', pending, place, id)
end
