"""Batches that workers feed on their own: handed over once, then looked at, paused or fetched from anywhere.

What Redis holds of a batch, all under its name: a record, an index of its lines (which job each is, or why it is none),
and the requests that have not been fed yet, in compressed chunks. Workers feed chunk after chunk, as far as a window
allows (`turnout_workers.batch_feeding`). Job ids follow from batch, line and content: a chunk fed twice is fed once.
"""

from __future__ import annotations

import json
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from uuid import uuid4

import redis

from turnout.batch.feeder import read
from turnout.batch.lines import BadLine, Defaults, Format, Item, job_id
from turnout.batch.render import bad_result, render
from turnout.batch.source import Source
from turnout.errors import TurnoutError
from turnout.ledger import Keyring, Ledger, NewJob, Read, run
from turnout.request import InferenceRequest
from turnout.result import JobResult, JobStatus, Problem

CHUNK, CHUNK_BYTES = 200, 512 * 1024
"""Lines in a chunk, and the bytes of requests from which on a chunk is closed earlier."""
PAGE = 500
KEPT_S = 30 * 86_400
"""How long a batch's record and index are kept. Results are kept as `[retention]` says."""


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
    """Lines that are requests; the others are bad."""
    fed: int
    max_cost_microusd: int | None


Line = tuple[Item | BadLine, str | None]
"""A line without its request, and its job's id."""


class Batches:
    """The batches of one namespace."""

    def __init__(self, client: redis.Redis, ledger: Ledger) -> None:
        self._client = client
        self._ledger = ledger
        self._keys = ledger.keys

    def submit(self, source: Source, defaults: Defaults, max_cost_microusd: int | None = None) -> str:
        """Hand a whole input over; gives the batch's id. Until all of it is in Redis, nothing is fed."""
        id, keys = f"batch-{uuid4().hex[:8]}", self._keys
        record = {"source": source.path, "state": State.SUBMITTING, "at": time.time(), "next": 0, "fed": 0}
        if max_cost_microusd is not None:
            record["max_cost_microusd"] = max_cost_microusd
        self._client.hset(keys.batch(id), mapping=record)  # type: ignore[arg-type]
        self._client.zadd(keys.batches, {id: time.time()})
        lines = jobs = 0
        chunk: list[str] = []
        index: list[str] = []
        for line in read(source, defaults):
            lines += 1
            its_job = None
            if isinstance(line, Item):
                its_job, jobs = job_id(id, line), jobs + 1
                chunk.append(json.dumps([its_job, line.request.canonical_json()]))
            index.append(_indexed(line, its_job))
            if len(index) >= CHUNK or sum(map(len, chunk)) >= CHUNK_BYTES:
                self._put(id, chunk, index)
        self._put(id, chunk, index)
        for key in (keys.batch(id), keys.batch(id, "lines"), keys.batch(id, "input")):
            self._client.expire(key, KEPT_S)
        self._client.hset(keys.batch(id), mapping={"lines": lines, "jobs": jobs, "state": State.FEEDING})
        return id

    def _put(self, id: str, chunk: list[str], index: list[str]) -> None:
        with self._client.pipeline() as pipe:
            if chunk:
                packed = zlib.compress("\n".join(chunk).encode())
                pipe.rpush(self._keys.batch(id, "input"), self._ledger.keyring.seal(f"input of {id}", packed))
            if index:
                pipe.rpush(self._keys.batch(id, "lines"), *index)
            pipe.execute()
        chunk.clear()
        index.clear()

    def all(self) -> list[Record]:
        """The latest first."""
        self._client.zremrangebyscore(self._keys.batches, "-inf", time.time() - KEPT_S)
        ids: Any = self._client.zrange(self._keys.batches, 0, -1, desc=True)
        records = run(self._client, [self._read(one.decode()) for one in ids])
        return [record for record in records if record is not None]

    def record(self, id: str) -> Record:
        """Raises NoSuchBatch."""
        found: Record | None = run(self._client, [self._read(id)])[0]
        if found is None:
            raise NoSuchBatch(f"there is no batch {id}; `turnout batch list` shows those that there are")
        return found

    def _read(self, id: str) -> Read[Record | None]:
        names = ("source", "state", "at", "lines", "jobs", "fed", "max_cost_microusd")

        def decode(reply: list[bytes | None]) -> Record | None:
            source, state, at, lines, jobs, fed, ceiling = (None if v is None else v.decode() for v in reply)
            if state is None:
                return None
            numbers = int(lines or 0), int(jobs or 0), int(fed or 0)
            return Record(
                id, source or "", State(state), float(at or 0), *numbers, None if ceiling is None else int(ceiling)
            )

        return Read(("HMGET", self._keys.batch(id), *names), decode)

    def counts(self, id: str) -> Counter[str]:
        """Lines by where they stand: a job's state, `waiting` for those not fed yet, `invalid` for bad ones."""
        found: Counter[str] = Counter()
        unfed = "cancelled" if self.record(id).state is State.CANCELLED else "waiting"
        for page in self._pages(id):
            ids = [its_job for _, its_job in page if its_job is not None]
            found["invalid"] += len(page) - len(ids)
            facts = run(self._client, [self._ledger.facts(one) for one in ids])
            found.update(job.state if job else unfed for job in facts)
        return +found

    def results(self, id: str) -> Iterator[tuple[JobResult, bytes]]:
        """Of all lines that have ended, in the order of the input: the result, and its line of output."""
        cancelled = self.record(id).state is State.CANCELLED
        for page in self._pages(id):
            ids = [its_job for _, its_job in page if its_job is not None]
            results = dict(zip(ids, run(self._client, [self._ledger.result(one) for one in ids]), strict=True))
            for line, its_job in page:
                result = bad_result(line) if isinstance(line, BadLine) else results[its_job or ""]
                if result is None and cancelled:
                    problem = Problem(code="cancelled", message="its batch was cancelled before it was fed")
                    result = JobResult(id=its_job or "", status=JobStatus.CANCELLED, error=problem)
                if result is not None:
                    yield result, render(line, result)

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
        self._client.delete(self._keys.batch(id, "input"))
        cancelled = 0
        for page in self._pages(id):
            ids = [its_job for _, its_job in page if its_job is not None]
            ended = run(self._client, [self._ledger.cancel(one, id, result_ttl_s) for one in ids])
            cancelled += sum(one.accepted for one in ended)
        return cancelled

    def retry_failed(self, id: str) -> int:
        """Run its failed and expired jobs again; gives how many."""
        self.record(id)
        again = 0
        for page in self._pages(id):
            ids = [its_job for _, its_job in page if its_job is not None]
            facts = run(self._client, [self._ledger.facts(one) for one in ids])
            ended = [(i, job) for i, job in zip(ids, facts, strict=True) if job and job.state in ("failed", "expired")]
            again += sum(run(self._client, [self._ledger.replay(i, job.lane) for i, job in ended]))
        return again

    def _pages(self, id: str) -> Iterator[list[Line]]:
        start = 0
        while found := self._page(id, start):
            yield found
            start += len(found)

    def _page(self, id: str, start: int) -> list[Line]:
        texts: Any = self._client.lrange(self._keys.batch(id, "lines"), start, start + PAGE - 1)
        return [_line(text) for text in texts]


def chunk_jobs(chunk: bytes, batch: str, keyring: Keyring) -> list[NewJob]:
    """The jobs of one chunk of a batch's input. Raises Unreadable."""
    lines = zlib.decompress(keyring.open(f"input of {batch}", chunk)).decode().split("\n")
    pairs = (json.loads(one) for one in lines)
    return [NewJob.of(id, InferenceRequest.model_validate_json(payload), batch=batch) for id, payload in pairs]


def _indexed(line: Item | BadLine, its_job: str | None) -> str:
    if isinstance(line, BadLine):
        return json.dumps([line.line, line.custom_id, line.format, None, line.code, line.message])
    return json.dumps([line.line, line.custom_id, line.format, its_job, line.url, line.base64])


_NOTHING = InferenceRequest(prompt="")


def _line(text: bytes) -> Line:
    number, custom_id, format, its_job, *rest = json.loads(text)
    if its_job is None:
        return BadLine(number, custom_id, rest[0], rest[1], Format(format)), None
    return Item(number, custom_id, _NOTHING, Format(format), rest[0], rest[1]), its_job
