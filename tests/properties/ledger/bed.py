"""The real ledger on a real Redis, on a clock that tests move by hand."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import redis
from tests.properties.ledger.spec import DEATH, LEAD, POISON, TTL, WAIT, Job, Step

from turnout.ledger import Claimed, Enqueued, Ledger, NewJob, NotClaimed, Operation, Settlement, ledger, run
from turnout.ledger.keys import Keys
from turnout.request import InferenceRequest, Lane, RoutingConstraints
from turnout.result import JobResult, JobStatus, Problem

CLOCK_KEY = "clock of the tests"
HAND_CLOCK = f"local function now_ms() return tonumber(redis.call('GET', '{CLOCK_KEY}')) end\n"
START = 1_000_000_000
KEPT_S = 60.0
LANE = Lane.STANDARD
PLAIN = '{"headers":{"id":"plain","task":"turnout.infer"},"body":""}'
"""A message of a Celery app, which knows nothing of places."""
DOCUMENTED = set(re.findall(r"\w+", ledger.__doc__ or ""))

BEGIN = """
local job = redis.call('HMGET', KEYS[1], 'state', 'token')
if job[2] ~= ARGV[1] or not (job[1] == 'leased' or job[1] == 'calling') then return 0 end
redis.call('HSET', KEYS[1], 'state', 'calling')
return 1
"""
"""The rule by which the fleet's store moves a job from leased to calling when it admits a call."""


Store = dict[str, list[Any]]
"""All keys: kind and content of each, that of a hash or a sorted set flat."""
LOAD = """
redis.call('FLUSHDB')
for key, entry in pairs(cjson.decode(ARGV[1])) do
  local kind, content = entry[1], entry[2]
  if kind == 'zset' then
    for i = 1, #content, 2 do redis.call('ZADD', key, content[i + 1], content[i]) end
  else
    redis.call(({hash = 'HSET', list = 'RPUSH', string = 'SET'})[kind], key, unpack(content))
  end
end
"""
"""Makes Redis hold what a store, as JSON, says, and nothing else."""
DUMP = """
local dump = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  local kind = redis.call('TYPE', key).ok
  if kind == 'hash' then dump[key] = {kind, redis.call('HGETALL', key)}
  elseif kind == 'zset' then dump[key] = {kind, redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')}
  elseif kind == 'list' then dump[key] = {kind, redis.call('LRANGE', key, 0, -1)} end
end
return cjson.encode(dump)
"""
"""A store as JSON, taken from what Redis holds. Strings are left out."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One mistake in one script."""

    script: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.script}: {self.old!r} → {self.new!r}"


class MutatedLedger(Ledger):
    """A ledger with a mistake in it."""

    def __init__(self, mutant: Mutant, keys: Keys, clock: str) -> None:
        super().__init__(keys, clock)
        self._mutant = mutant

    def operation(self, name: str, *args: Any, **more: Any) -> Operation[Any]:
        call = super().operation(name, *args, **more)
        mutant = self._mutant
        if name != mutant.script:
            return call
        assert mutant.old in call.script.source, f"no such text: {mutant}"
        source = call.script.source.replace(mutant.old, mutant.new, 1)
        sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
        mutated = replace(call.script, source=source, sha=sha)
        return replace(call, script=mutated, command=("EVALSHA", sha, *call.command[2:]))


class Bed:
    """An empty ledger. Its operations go out one by one."""

    def __init__(self, url: str, mutant: Mutant | None = None) -> None:
        self.client = redis.Redis.from_url(url, decode_responses=False)
        self.keys = Keys("t")
        self.ledger = MutatedLedger(mutant, self.keys, HAND_CLOCK) if mutant else Ledger(self.keys, HAND_CLOCK)
        self.restart()

    def restart(self) -> None:
        """Empty, and at the start of time."""
        self.now = START
        self.front = 0
        """Of the lane, when it was last looked at for lost messages."""
        with self.client.pipeline() as pipe:
            pipe.flushall()
            pipe.set(CLOCK_KEY, START)
            pipe.execute()

    def __call__(self, call: Any) -> Any:
        return run(self.client, [call])[0]

    def advance(self, ms: int) -> None:
        self.now += ms
        self.client.set(CLOCK_KEY, self.now)

    def close(self) -> None:
        self.client.close()

    # --- short hands -----------------------------------------------------------------------------------

    def enqueue(self, job_id: str = "a", **changes: Any) -> Enqueued:
        return self(self.ledger.enqueue(new_job(job_id, **changes)))

    def claimed(self, job_id: str = "a", ttl_s: float = 30.0) -> Claimed:
        claim = self(self.ledger.claim(job_id, "w", ttl_s))
        assert isinstance(claim, Claimed), claim
        return claim

    def settle(self, token: int, status: JobStatus = JobStatus.SUCCEEDED, job_id: str = "a", **more: Any) -> Settlement:
        return self(self.ledger.settle(token, ended(job_id, status, token), None, KEPT_S, **more))

    def fail_over(self, token: int, job_id: str = "a") -> None:
        assert self(self.ledger.requeue(job_id, token, "p", {"event": "failed_over"}, failovers=1))

    def hand_back(self, token: int, job_id: str = "a") -> None:
        assert self(self.ledger.requeue(job_id, token, "p", {"event": "handed_back"}))

    def state(self, job_id: str = "a") -> str:
        return (self.client.hget(self.keys.job(job_id), "state") or b"none").decode()

    def crashes(self, job_id: str = "a") -> int:
        return int(self.client.hget(self.keys.job(job_id), "crashes") or 0)

    def messages(self, lane: Lane = LANE) -> list[bytes]:
        """The lane's messages, the next one first."""
        return self.client.lrange(self.keys.queue(lane), 0, -1)[::-1]

    def everything(self, job_ids: Sequence[str]) -> tuple[dict[str, dict[str, str]], dict[str, dict[str, float]], int]:
        """The records, the indices, and the number of messages."""
        keys = self.keys
        names = (
            *keys.all_pending,
            keys.job_leases,
            keys.delayed,
            keys.parked,
            keys.deadlines,
            keys.failed,
            keys.workers,
        )
        with self.client.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hgetall(keys.job(job_id))
            for name in names:
                pipe.zrange(name, 0, -1, withscores=True)
            pipe.llen(keys.queue(LANE))
            *replies, messages = pipe.execute()
        records = [{name.decode(): text.decode() for name, text in one.items()} for one in replies[: len(job_ids)]]
        indices = [{name.decode(): score for name, score in one} for one in replies[len(job_ids) :]]
        return dict(zip(job_ids, records, strict=True)), dict(zip(names, indices, strict=True)), messages

    # --- steps of the specification --------------------------------------------------------------------

    def operation(self, step: Step, job_id: str = "a") -> Any:
        """A step as something to send; the fleet's part of it is a plain command."""
        ledger, token = self.ledger, step.token
        match step.name:
            case "enqueue":
                return ledger.enqueue(new_job(job_id))
            case "enqueue_urgent":
                return ledger.enqueue(new_job(job_id, deadline_s=LEAD / 1000))
            case "enqueue_other":
                return ledger.enqueue(new_job(job_id, fingerprint="another"))
            case "claim":
                return ledger.claim(job_id, "w", TTL / 1000)
            case "begin":
                return self._begin(job_id, token)
            case "renew":
                return ledger.renew([(job_id, token)], TTL / 1000)
            case "fail_over":
                return ledger.requeue(job_id, token, "over", {"event": "failed_over"}, failovers=1)
            case "release":
                return ledger.requeue(job_id, token, "over", {"event": "handed_back"})
            case "park":
                return ledger.park(job_id, token, WAIT / 1000, "parked", {"event": "deferred"})
            case "succeed" | "fail" | "succeed_late" | "fail_late":
                how, _, late = step.name.partition("_")
                status = JobStatus.SUCCEEDED if how == "succeed" else JobStatus.FAILED
                return ledger.settle(token, ended(job_id, status, token), None, KEPT_S, from_spool=bool(late))
            case "take_end":
                return replace(ledger.take_end(job_id), decode=lambda reply: bool(reply[0]))  # not how: see `DUMP`
            case "cancel":
                return ledger.cancel(job_id, None)
            case "expire":
                return ledger.expire(job_id, None)
            case "give_up":
                return ledger.give_up(job_id, "it died", None)
            case "sweep":
                return ledger.sweep(job_id, DEATH, POISON)
            case "wake":
                return ledger.wake(job_id, next_s=0)
        raise AssertionError(step)

    def _begin(self, job_id: str, token: int) -> Any:
        script = replace(self.ledger.wake("").script, source=BEGIN, sha=_BEGIN_SHA)
        return script.operation([self.keys.job(job_id)], [token], int)


_BEGIN_SHA = hashlib.sha1(BEGIN.encode(), usedforsecurity=False).hexdigest()


def new_job(job_id: str = "a", **changes: Any) -> NewJob:
    """changes: of its fields, or of those of its request, of which nothing is checked. deadline: Unix time."""
    asked = {name: changes.pop(name) for name in ("model", "metadata") if name in changes}
    wish = {name: changes.pop(name) for name in ("lane", "tenant", "deadline", "deadline_s") if name in changes}
    if (at := wish.get("deadline")) is not None:
        wish["deadline"] = datetime.fromtimestamp(at, UTC)
    constraints = RoutingConstraints.model_construct(**({"lane": LANE} | wish))
    request = InferenceRequest.model_construct(**asked, constraints=constraints)
    return NewJob(**({"id": job_id, "request": request, "payload": "{}", "fingerprint": "f"} | changes))


def ended(job_id: str, status: JobStatus, token: int) -> JobResult:
    """The result that a token's holder brings: told apart from others' by `started_at`."""
    error = None if status is JobStatus.SUCCEEDED else Problem(code="unavailable", message="it said no")
    return JobResult(id=job_id, status=status, error=error, started_at=float(token))


def winner_of(result: JobResult) -> tuple[str, int]:
    return result.status.value, int(result.started_at or 0)


def in_pairs(flat: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def indices(store: Store) -> dict[str, dict[str, float]]:
    """Its sorted sets."""
    zsets = {key: content for key, (kind, content) in store.items() if kind == "zset"}
    return {key: {name: float(score) for name, score in in_pairs(content).items()} for key, content in zsets.items()}


def simple(reply: Any) -> object:
    """A reply in the specification's words."""
    match reply:
        case Enqueued() | Settlement():
            return reply.outcome.value
        case Claimed():
            return reply.token
        case NotClaimed():
            return reply.state
        case [only]:
            return only
    return reply


def seen(job_id: str, keys: Keys, record: Mapping[str, str], indices: Mapping[str, Mapping[str, float]]) -> Job:
    """The job as Redis has it. Raises AssertionError where record and indices disagree."""
    if not record:
        assert not any(job_id in members for members in indices.values()), indices
        return Job()
    state = record["state"]

    def place(index: str) -> int | None:
        score = indices.get(index, {}).get(job_id)
        return None if score is None else int(score)

    assert record.keys() <= DOCUMENTED, "see the docstring of the ledger"
    pending = [name for name, members in indices.items() if ":pending" in name and job_id in members]
    lease, deadline = place(keys.job_leases), place(keys.deadlines)
    lines = {spot.split(" ")[0] for spot in indices.get(keys.parked, {})}
    assert lines == set(indices.get(keys.delayed, {})), "each line has its time, and none is empty"
    spot = record.get("spot", "")
    assert bool(spot) == (spot in indices.get(keys.parked, {})), (record, indices)
    due = int(indices[keys.delayed][spot.split(" ")[0]]) if spot else None
    assert len(pending) == (state == "queued"), (state, indices)
    assert (lease is not None) == (state in ("leased", "calling")), (state, indices)
    assert (due is not None) == (state == "delayed"), (state, indices)
    assert (place(keys.failed) is not None) == (state == "failed"), (state, indices)
    settled = state in {status.value for status in JobStatus}
    assert settled == ("settled_token" in record), record
    assert (settled and state != "succeeded") == ("result" in record), record
    winner = None
    if settled:
        assert deadline is None, indices
        winner = (state, int(record["settled_token"]))
        if state != "succeeded":
            assert winner == winner_of(JobResult.model_validate_json(record["result"])), record
    elif deadline is not None:
        assert record["deadline_ms"] == str(deadline), record
    else:
        assert record["deadline_ms"] == "0", record
    numbers = (int(record[name]) for name in ("token", "crashes", "requeues"))
    progress = "" if settled else record.get("progress", "")
    since, owner = record["suspect"].split(" ") if "suspect" in record else (0, "")
    signs = [time for name, time in indices.get(keys.workers, {}).items() if name.split(" ")[0] == owner]
    return Job(
        state,
        *numbers,
        progress,
        lease,
        due,
        deadline,
        suspect="suspect" in record,
        lives=any(time > int(since) for time in signs),
        winner=winner,
        unheard=record.get("unheard", ""),
    )
