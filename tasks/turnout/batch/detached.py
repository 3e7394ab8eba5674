"""Batches that workers feed on their own: handed over once, then looked at, paused or fetched from anywhere.

What Redis holds of a batch, all under its name: a record with counts that the ledger keeps, an index of its lines
(which job each is, or why it is none), and the requests that have not been fed yet, in compressed chunks. Workers feed
chunk after chunk, as far as a window allows (`turnout_workers.batch_feeding`). Job ids follow from batch, line and
content: a chunk fed twice is fed once. Results are kept as long as the record.
"""

from __future__ import annotations

import json
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from uuid import uuid4

import redis

from turnout.batch.feeder import read
from turnout.batch.lines import BadLine, Defaults, Format, Item, job_id, short
from turnout.batch.render import bad_result, copied, render
from turnout.batch.source import Source
from turnout.errors import TurnoutError
from turnout.ledger import Call, Keyring, Keys, Ledger, NewJob, run
from turnout.request import InferenceRequest
from turnout.result import JobResult, JobStatus, Problem

CHUNK, CHUNK_BYTES = 200, 512 * 1024
"""Lines in a chunk, and the bytes of requests from which on a chunk is closed earlier."""
PAGE = 500
KEPT_S = 7 * 86_400
"""How long a batch is kept, with its results, from when it is submitted."""


class State(StrEnum):
    SUBMITTING = "submitting"
    FEEDING = "feeding"
    PAUSED = "paused"
    CANCELLED = "cancelled"


class NoSuchBatch(TurnoutError):
    """There is none of this name, or its record has expired."""


@dataclass(frozen=True, slots=True)
class Record:
    """A batch at a glance."""

    id: str
    source: str
    state: State
    submitted_at: float
    lines: int
    jobs: int
    """Lines that are requests of their own; the others are bad, or share the job of an identical one."""
    shared: int
    fed: int
    chunks_fed: int
    max_cost_microusd: int | None
    settled: Mapping[str, int]
    """Jobs that have ended, by how."""

    @property
    def under_way(self) -> int:
        return max(0, self.fed - sum(self.settled.values()))

    @property
    def counts(self) -> dict[str, int]:
        """Jobs by where they stand, and the lines that are none of their own."""
        counts = Counter(self.settled)
        counts["under_way"] = self.under_way
        counts["cancelled" if self.state is State.CANCELLED else "waiting"] += self.jobs - self.fed
        counts["invalid"] = self.lines - self.jobs - self.shared
        counts["shared"] = self.shared
        return dict(+counts)

    @property
    def ended(self) -> bool:
        return self.state is not State.SUBMITTING and not {"under_way", "waiting"} & self.counts.keys()

    @property
    def complete(self) -> bool:
        """Every line has an answer."""
        return self.settled.get(JobStatus.SUCCEEDED, 0) + self.shared == self.lines


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the input, without its request."""

    line: Item | BadLine
    job: str
    """Its job's id; empty for a bad line."""
    shared: bool
    """Whether the job is that of an identical line before it."""


class Batches:
    """The batches of one namespace."""

    def __init__(self, client: redis.Redis, ledger: Ledger) -> None:
        self._client = client
        self._ledger = ledger
        self._keys = ledger.keys

    def submit(
        self, source: Source, defaults: Defaults, max_cost_microusd: int | None = None, dedupe: bool = False
    ) -> str:
        """Hand a whole input over; gives the batch's id. Until all of it is in Redis, nothing is fed.

        dedupe: ask identical requests once.
        """
        id, keys = f"batch-{uuid4().hex[:8]}", self._keys
        record = {"source": source.name, "state": State.SUBMITTING, "at": time.time(), "next": 0, "fed": 0}
        if max_cost_microusd is not None:
            record["max_cost_microusd"] = max_cost_microusd
        self._client.hset(keys.batch(id), mapping=record)  # type: ignore[arg-type]
        self._client.expire(keys.batch(id), KEPT_S)
        self._client.zadd(keys.batches, {id: time.time()})
        try:
            counts = self._hand_over(id, read(source, defaults), dedupe)
        except BaseException:
            self.delete(id)
            raise
        counts["state"] = State.FEEDING
        self._client.hset(keys.batch(id), mapping=counts)  # type: ignore[arg-type]
        return id

    def _hand_over(self, id: str, lines: Iterable[Item | BadLine], dedupe: bool) -> dict[str, Any]:
        counts = {"lines": 0, "jobs": 0, "shared": 0}
        chunk: list[str] = []
        index: list[str] = []
        known: set[int] = set()
        size = 0
        for line in lines:
            its_job, shared = "", False
            if isinstance(line, Item):
                payload = line.request.canonical_json()
                its_job = job_id(id, line, payload, dedupe)
                shared = short(its_job) in known
                if dedupe:
                    known.add(short(its_job))
                if not shared:
                    counts["jobs"] += 1
                    chunk.append(json.dumps([its_job, payload]))
                    size += len(chunk[-1])
            counts["lines"] += 1
            counts["shared"] += shared
            index.append(_indexed(Line(line, its_job, shared)))
            if len(index) >= CHUNK or size >= CHUNK_BYTES:
                self._put(id, chunk, index)
                size = 0
        self._put(id, chunk, index)
        return counts

    def _put(self, id: str, chunk: list[str], index: list[str]) -> None:
        with self._client.pipeline() as pipe:
            if chunk:
                packed = zlib.compress("\n".join(chunk).encode())
                pipe.rpush(self._keys.batch_input(id), self._ledger.keyring.seal(f"input of {id}", packed))
            if index:
                pipe.rpush(self._keys.batch_lines(id), *index)
            for key in (self._keys.batch_input(id), self._keys.batch_lines(id)):
                pipe.expire(key, KEPT_S)
            pipe.execute()
        chunk.clear()
        index.clear()

    def all(self) -> list[Record]:
        """The latest first."""
        self._client.zremrangebyscore(self._keys.batches, "-inf", time.time() - KEPT_S)
        ids: Any = self._client.zrange(self._keys.batches, 0, -1, desc=True)
        records = run(self._client, [read_record(self._keys, one.decode()) for one in ids])
        return [record for record in records if record is not None]

    def record(self, id: str) -> Record:
        """Raises NoSuchBatch."""
        found: Record | None = run(self._client, [read_record(self._keys, id)])[0]
        if found is None:
            raise NoSuchBatch(f"there is no batch {id}; `turnout batch list` shows those that there are")
        return found

    def results(self, id: str) -> Iterator[tuple[JobResult, bytes]]:
        """Of all lines that have ended, in the order of the input: the result, and its line of output."""
        record, number = self.record(id), 0
        for page in self._pages(id):
            results = self._ask(self._ledger.result, page)
            facts = self._ask(self._ledger.facts, [one for one in page if results.get(one.job) is None])
            for one in page:
                result: JobResult | None
                if isinstance(one.line, BadLine):
                    result = bad_result(one.line)
                else:
                    number += not one.shared
                    result = results[one.job]
                    if result is None and facts[one.job] is None:
                        result = _without_job(one.job, record, fed=number <= record.fed)
                if result is not None:
                    rendered = render(one.line, result)
                    yield result, copied(rendered, one.line) if one.shared else rendered

    def pause(self, id: str) -> None:
        """Feed no more; what is queued goes on."""
        self._move(id, State.FEEDING, State.PAUSED)

    def resume(self, id: str) -> None:
        self._move(id, State.PAUSED, State.FEEDING)

    def _move(self, id: str, before: State, after: State) -> None:
        now = self.record(id).state
        if now not in (before, after):
            raise TurnoutError(f"batch {id} is {now}")
        self._client.hset(self._keys.batch(id), "state", after)

    def cancel(self, id: str, result_ttl_s: float) -> int:
        """Feed no more, and cancel what is queued, parked or in flight. Gives how many jobs that were."""
        self.record(id)
        self._client.hset(self._keys.batch(id), "state", State.CANCELLED)
        self._client.delete(self._keys.batch_input(id))
        cancelled = 0
        for page in self._pages(id):
            ended = self._ask(lambda one: self._ledger.cancel(one, id, result_ttl_s), page)
            cancelled += sum(one.accepted for one in ended.values())
        return cancelled

    def retry_failed(self, id: str) -> int:
        """Run its failed and expired jobs again; gives how many."""
        self.record(id)
        again = 0
        for page in self._pages(id):
            facts = self._ask(self._ledger.facts, page)
            ended = [(one, job.lane) for one, job in facts.items() if job and job.state in ("failed", "expired")]
            again += sum(run(self._client, [self._ledger.replay(one, lane, id) for one, lane in ended]))
        return again

    def delete(self, id: str) -> None:
        """Drop it with its results. Raises TurnoutError while jobs of it are to be run or under way."""
        record = self.record(id)
        if record.state is not State.SUBMITTING and not record.ended:
            raise TurnoutError(f"batch {id} has not ended; cancel it first")
        for page in self._pages(id):
            run(self._client, [self._ledger.purge([one.job for one in page if one.job])])
        self._client.delete(self._keys.batch(id), self._keys.batch_lines(id), self._keys.batch_input(id))
        self._client.zrem(self._keys.batches, id)
        run(self._client, [self._ledger.set_ceiling(id, None)])

    def _pages(self, id: str) -> Iterator[list[Line]]:
        start = 0
        while found := self._page(id, start):
            yield found
            start += len(found)

    def _page(self, id: str, start: int) -> list[Line]:
        texts: Any = self._client.lrange(self._keys.batch_lines(id), start, start + PAGE - 1)
        return [_line(text) for text in texts]

    def _ask(self, what: Callable[[str], Call[Any]], page: Sequence[Line]) -> dict[str, Any]:
        """Of each job of a page."""
        ids = list({one.job: None for one in page if one.job})
        return dict(zip(ids, run(self._client, [what(id) for id in ids]), strict=True))


def read_record(keys: Keys, id: str) -> Call[Record | None]:
    """None: there is no such batch."""

    def decode(reply: Mapping[bytes, bytes]) -> Record | None:
        told = {name.decode(): value.decode() for name, value in reply.items()}
        if "state" not in told:
            return None
        return Record(
            id=id,
            source=told["source"],
            state=State(told["state"]),
            submitted_at=float(told["at"]),
            lines=int(told.get("lines", 0)),
            jobs=int(told.get("jobs", 0)),
            shared=int(told.get("shared", 0)),
            fed=int(told["fed"]),
            chunks_fed=int(told["next"]),
            max_cost_microusd=int(told["max_cost_microusd"]) if "max_cost_microusd" in told else None,
            settled={status.value: int(told[status]) for status in JobStatus if int(told.get(status, 0))},
        )

    return Call(("HGETALL", keys.batch(id)), decode)


def chunk_jobs(chunk: bytes, batch: str, keyring: Keyring) -> list[NewJob]:
    """The jobs of one chunk of a batch's input. Raises Unreadable."""
    lines = zlib.decompress(keyring.open(f"input of {batch}", chunk)).decode().split("\n")
    pairs = (json.loads(one) for one in lines)
    return [NewJob.of(id, InferenceRequest.model_validate_json(payload), batch=batch) for id, payload in pairs]


def _without_job(id: str, record: Record, fed: bool) -> JobResult | None:
    """The end of a line that never became a job; None: it may become one."""
    if fed:
        problem = Problem(code="deadline", message="its deadline had passed when it was fed")
        return JobResult(id=id, status=JobStatus.EXPIRED, error=problem)
    if record.state is State.CANCELLED:
        problem = Problem(code="cancelled", message="its batch was cancelled before it was fed")
        return JobResult(id=id, status=JobStatus.CANCELLED, error=problem)
    return None


def _indexed(one: Line) -> str:
    line = one.line
    rest = [line.code, line.message] if isinstance(line, BadLine) else [line.url, line.base64, int(one.shared)]
    return json.dumps([line.line, line.custom_id, line.format, one.job, *rest], separators=(",", ":"))


_NOTHING = InferenceRequest(prompt="")


def _line(text: bytes) -> Line:
    number, custom_id, format, its_job, *rest = json.loads(text)
    if not its_job:
        return Line(BadLine(number, custom_id, rest[0], rest[1], Format(format)), "", False)
    return Line(Item(number, custom_id, _NOTHING, Format(format), rest[0], rest[1]), its_job, bool(rest[2]))
