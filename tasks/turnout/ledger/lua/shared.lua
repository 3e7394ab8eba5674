-- What the scripts share. Prepended to each of them, after `now_ms` and the constants of `operations.py`.
-- Keys go by the names under which a script lists them.
local NOW = now_ms()

-- A held job is being worked on: by one worker, until its lease ends.
local function is_held(state) return state == 'leased' or state == 'calling' end
local function is_live(state) return is_held(state) or state == 'queued' or state == 'delayed' end

-- Fields of the job's record, false for those that it doesn't have.
local function job_fields(...) return unpack(redis.call('HMGET', KEYS.job, ...)) end

local function starts_with(text, prefix) return string.sub(text, 1, #prefix) == prefix end

-- Where, in an index ordered by text, the members begin and end that start with these words, followed by a time.
local function lex_range(words) return '[' .. words .. ' ', '(' .. words .. ' :' end

local function first_in(index, from, to)
  return redis.call('ZRANGE', index, from, to, 'BYLEX', 'LIMIT', 0, 1)[1]
end

-- Add an event, the inside of a JSON object, to the job's story. Long stories lose their beginning.
local function add_event(event)
  local length = redis.call('RPUSH', KEYS.story, '{"at":' .. NOW .. ',' .. event .. '}')
  if length > 200 then redis.call('LTRIM', KEYS.story, -200, -1) end
end

-- The keys of a lane: its pending jobs, and its queue, which has the lane's name. A record with an unknown lane was
-- tampered with: it counts as of the first lane, so that it blocks nothing.
local function lane_keys(lane)
  local lanes, number = #KEYS.all_lanes / 2, 1
  for i = 1, lanes do
    if KEYS.all_lanes[lanes + i] == lane then number = i end
  end
  return KEYS.all_lanes[number], KEYS.all_lanes[lanes + number]
end

-- Publish to a job's watchers or readers, but only on channels of clients. Producers may write such lists, and choose
-- an id that Celery's remote control would obey; the worker that settles the job may publish more than they may.
local function notify(inboxes, message)
  local of_clients = string.match(KEYS.job, '^.-:') .. 'inbox:'
  for inbox in string.gmatch(inboxes or '', '%S+') do
    if starts_with(inbox, of_clients) then redis.call('PUBLISH', inbox, message) end
  end
end

-- A lane's list is sorted by position, a time (ms) that each message carries as `place`: at the back it is the current
-- time, at the front the position of the message overtaken. `pending` has the job at the same position. So a queued job
-- whose position is before the front has no message any more: it was lost with the worker that had fetched it.
-- A plain Celery message has no position. At the front it counts as before all queued jobs, so that none looks lost.
local function front_position(pending, queue)
  local first = redis.call('LINDEX', queue, -1)
  local position = string.match(first or '', '"place":%s*(%d+)')
  local lowest = first and not position and redis.call('ZRANGE', pending, 0, 0, 'WITHSCORES')[2]
  return math.min(NOW, position or lowest or NOW)
end

-- Turns: only `turns_each` jobs of a tenant are published in a lane at a time. The others await their turn, the first
-- accepted first, and each job that is claimed passes its turn on. So those behind a flood have only a handful of jobs
-- before them. `turns` and `awaiting_turn` are ordered by text: LANE TENANT ACCEPTED ID.
local function lane_and_tenant(turn) return string.match(turn, '^(%S+ %S*) ') end

local function free_turns(owner)
  local allowed = tonumber(redis.call('GET', KEYS.turns_each) or TURNS)
  return allowed - redis.call('ZLEXCOUNT', KEYS.turns, lex_range(owner))
end

-- Give a queued job its turn, or let it await one. Returns whether it has it now; a job without a tenant always has.
local function take_or_await_turn(id)
  local lane, tenant, accepted = job_fields('lane', 'tenant', 'accepted_ms')
  if not tenant then return true end
  local free = free_turns(lane .. ' ' .. tenant) > 0
  local turn = table.concat({lane, tenant, accepted, id}, ' ')
  redis.call('HSET', KEYS.job, 'turn', turn)
  redis.call('ZADD', free and KEYS.turns or KEYS.awaiting_turn, 0, turn)
  return free
end

-- Give a free turn to the next job that awaits one; the caller publishes its message. Until then the job counts as
-- queued without a message, so that it is found if that doesn't happen.
local function give_next_turn(owner)
  local turn = first_in(KEYS.awaiting_turn, lex_range(owner))
  if not turn then return nil end
  local lane, id = string.match(turn, '^(%S+) %S* %d+ (.*)$')
  redis.call('ZREM', KEYS.awaiting_turn, turn)
  redis.call('ZADD', KEYS.turns, 0, turn)
  redis.call('ZADD', (lane_keys(lane)), NOW, id)
  return id
end

local function end_turn(turn)
  redis.call('HDEL', KEYS.job, 'turn')
  redis.call('ZREM', KEYS.turns, turn)
  redis.call('ZREM', KEYS.awaiting_turn, turn)
end

-- Parked jobs that wait for the same thing form a wait group, the first accepted first: `parked` is ordered by text,
-- GROUP ACCEPTED ID, and a job's record has its member as `spot`. Only the head of a group looks for room, at the time
-- that `delayed` has for the group, and each job that finds room wakes others; so those behind cost nothing while they
-- wait. A time of 0: something has changed.
local function group_of(member) return string.match(member, '^%S+') end

local function head_of(group) return first_in(KEYS.parked, lex_range(group)) end

local function park(id, group, wait)
  local member = table.concat({group, job_fields('accepted_ms'), id}, ' ')
  redis.call('HSET', KEYS.job, 'state', 'delayed', 'spot', member)
  redis.call('ZADD', KEYS.parked, 0, member)
  -- The head has just looked, so the group waits as long as it says, and not shorter because of those behind it or of
  -- the time set in case it didn't come back. But if something has changed, it may have looked before that.
  if head_of(group) == member and redis.call('ZSCORE', KEYS.delayed, group) ~= '0' then
    redis.call('ZADD', KEYS.delayed, NOW + wait, group)
  end
end

local function unpark(member)
  local group = group_of(member)
  redis.call('HDEL', KEYS.job, 'spot')
  redis.call('ZREM', KEYS.parked, member)
  if not head_of(group) then redis.call('ZREM', KEYS.delayed, group) end
end

-- End a worker's hold of a job that goes on. Returns whether the worker held it.
local function release(id, token, progress)
  local state, current = job_fields('state', 'token')
  if not is_held(state) or token ~= current then return false end
  redis.call('HSET', KEYS.job, 'progress', progress)
  redis.call('ZREM', KEYS.job_leases, id)
  return true
end

local function has_lapsed(id, state)
  return is_held(state) and tonumber(redis.call('ZSCORE', KEYS.job_leases, id)) <= NOW
end

-- Values of RESULT, without the first for a job that goes on. The result of a success is in Celery's record.
local function result_values()
  local values = {job_fields(RESULT())}
  if values[2] and not values[1] then values[1] = redis.call('GET', KEYS.result) end
  return values
end

-- As JSON, without its quotes.
local function json_escaped(text) return string.sub(cjson.encode(text), 2, -2) end

-- Push a job's message on its lane's list: on the front if the job has had its turn before, else on the back. Returns
-- the lane's pending jobs, and the message's position.
local function push(id, at_front)
  local lane, label, embed, requeues, token = job_fields('lane', 'label', 'embed', 'requeues', 'token')
  local pending, queue = lane_keys(lane)
  local position = at_front and front_position(pending, queue) or NOW
  local message = string.gsub(MESSAGE, '<(%w+)>', {
    id = json_escaped(id), bodyid = json_escaped(json_escaped(id)), embed = json_escaped(embed or '{}'),
    lane = lane, label = json_escaped(label), retries = requeues, position = position,
    tag = NOW .. ':' .. token .. ':' .. json_escaped(id),  -- by which Celery distinguishes the messages it has fetched
  })
  redis.call(at_front and 'RPUSH' or 'LPUSH', queue, message)
  return pending, position
end

-- Queue a job, with its message.
local function publish(id, at_front)
  local pending, position = push(id, at_front)
  redis.call('HSET', KEYS.job, 'state', 'queued', 'queued_ms', NOW)
  redis.call('ZADD', pending, position, id)
end
