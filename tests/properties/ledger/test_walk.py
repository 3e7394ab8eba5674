"""Every state that a job can get into, and every step out of each, in the real Lua, held to the specification.

Time is part of the state, relative to now, so that the walk is finite and sees each moment before, at and after
the end of a lease, a wait and a deadline. Any token that was ever given out may act in any state: that is what
workers do which were paused, cut off, or thought dead.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from tests.properties.ledger.bed import KEPT_S, START, Bed, seen, simple, winner_of
from tests.properties.ledger.spec import BY_TOKEN, RULES, Job, Step, apply

from turnout.result import JobResult

LOAD = """
redis.call('FLUSHDB')
redis.call('SET', KEYS[1], ARGV[1])
for _, entry in ipairs(cjson.decode(ARGV[2])) do
  local key, kind, content = entry[1], entry[2], entry[3]
  redis.call(({hash = 'HSET', zset = 'ZADD', list = 'RPUSH'})[kind], key, unpack(content))
end
"""
DUMP = """
local dump = {}
for _, key in ipairs(redis.call('KEYS', '{t}:*')) do
  local kind = redis.call('TYPE', key).ok
  if kind == 'hash' then dump[#dump + 1] = {key, kind, redis.call('HGETALL', key)}
  elseif kind == 'zset' then dump[#dump + 1] = {key, kind, redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')} end
end
return {dump, redis.call('LLEN', KEYS[1]), redis.call('PTTL', KEYS[2]), redis.call('GET', KEYS[3])}
"""
ANYBODY = [Step(name) for name in RULES if name not in BY_TOKEN]

TIMERS = {"{t}:leases", "{t}:delayed", "{t}:deadlines"}

Entry = tuple[str, str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Stored:
    """All that Redis holds of the job, but for its story and messages."""

    entries: frozenset[Entry] = frozenset()

    def as_json(self) -> str:
        return json.dumps([(key, kind, content) for key, kind, content in self.entries])

    def hash(self, key: str) -> dict[str, str]:
        for name, _, content in self.entries:
            if name == key:
                return dict(zip(content[::2], content[1::2], strict=True))
        return {}

    def indices(self) -> dict[str, dict[str, float]]:
        return {
            name: {member: float(score) for score, member in zip(content[::2], content[1::2], strict=True)}
            for name, kind, content in self.entries
            if kind == "zset"
        }

    def a_moment_later(self) -> Stored:
        """The same one millisecond on: what is to come is one nearer. How long past it is makes no difference."""
        return Stored(frozenset((key, kind, tuple(_nearer(key, content))) for key, kind, content in self.entries))


def _nearer(key: str, content: tuple[str, ...]) -> Iterator[str]:
    for first, second in zip(content[::2], content[1::2], strict=True):
        if key in TIMERS:
            yield from (str(max(START - 1, int(first) - 1)), second)
        elif first == "deadline_ms" and second != "0":
            yield from (first, str(max(START - 1, int(second) - 1)))
        else:
            yield from (first, second)


def stored(dump: list[list[bytes | list[bytes]]]) -> Stored:
    entries = set()
    for key, kind, content in dump:
        texts = [text.decode() for text in content]  # type: ignore[union-attr]
        if kind == b"zset":  # as ZADD wants it
            pairs = sorted(zip(texts[1::2], texts[::2], strict=True))
        else:
            pairs = sorted(zip(texts[::2], texts[1::2], strict=True))
        entries.add((key.decode(), kind.decode(), tuple(part for pair in pairs for part in pair)))  # type: ignore[union-attr]
    return Stored(frozenset(entries))


def view(bed: Bed, state: Stored) -> Job:
    return seen("a", bed.keys, state.hash(bed.keys.job("a")), state.indices())


def steps(job: Job) -> list[Step]:
    """Each step of anybody's, and each worker's with every token until now, and two that never were."""
    if job.state == "none":
        return [step for step in ANYBODY if step.name != "enqueue_other"] + [Step(name, 1) for name in BY_TOKEN]
    by_token = [name for name in BY_TOKEN if name != "begin" or job.state != "calling"]  # one call is like many
    return ANYBODY + [Step(name, token) for name in by_token for token in range(job.token + 2)]


def walk(bed: Bed, claims: int) -> tuple[int, int]:
    """All states with up to so many claims. Returns their number and that of steps tried."""
    load, dump = bed.client.script_load(LOAD), bed.client.script_load(DUMP)
    probe = [bed.call(step) for step in (*ANYBODY, *(Step(name, 1) for name in BY_TOKEN))]
    for call in probe:
        bed.client.script_load(call.script.source)
    clock = "clock of the tests"
    start = Stored()
    known, frontier, tried = {start}, [start], 0
    while frontier:
        found: list[Stored] = []
        work = [(state, job, step) for state in frontier for job in [view(bed, state)] for step in steps(job)]
        for first in range(0, len(work), 400):
            chunk = work[first : first + 400]
            with bed.client.pipeline(transaction=False) as pipe:
                for state, _, step in chunk:
                    pipe.evalsha(load, 1, clock, START, state.as_json())
                    pipe.execute_command(*bed.call(step).command)
                    keys = bed.keys
                    pipe.evalsha(dump, 3, keys.queue("standard"), keys.job("a"), keys.result("a"))
                replies = pipe.execute()
            for (_, job, step), reply, (raw, pushed, ttl_ms, told) in zip(
                chunk, replies[1::3], replies[2::3], strict=True
            ):
                expected = apply(job, step, START)
                after = stored(raw)
                actual = view(bed, after)
                assert simple(bed.call(step).decode(reply)) == expected.reply, (job, step, reply)
                assert actual == expected.job, (step, job)
                assert pushed == expected.pushed, (step, job)
                newly_settled = actual.winner is not None and job.winner is None
                assert bool(told) == newly_settled, (step, job)
                if newly_settled and actual.state == "succeeded":
                    assert actual.winner == winner_of(JobResult.model_validate(json.loads(told)["result"])), (step, job)
                assert not newly_settled or 0 < ttl_ms <= KEPT_S * 1000, (step, job, ttl_ms)
                tried += 1
                if actual.token <= claims and after not in known:
                    known.add(after)
                    found.append(after)
        for state in frontier:
            later = state.a_moment_later()
            if later not in known:
                known.add(later)
                found.append(later)
        frontier = found
    return len(known), tried


def test_every_step_from_every_state_is_as_specified(bed: Bed) -> None:
    states, tried = walk(bed, claims=2)
    print(f"{states} states, {tried} steps")
    assert states > 300
    assert tried > 10_000
