"""Feeds a batch through the ledger: a bounded window of jobs in, results out as they settle, nothing twice.

One thread and one connection; every step is a pipeline of many jobs. The window bounds the queue's backlog, in
jobs and bytes, and so Redis's memory: results leave Redis when they are safe on disk. A job's id comes from batch,
line and content, so that whatever dies, the same command finds the jobs that are under way or done.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import redis

from turnout.batch.lines import BadLine, Defaults, Item, Uniqueness, detect, job_id, known_id, parse, short
from turnout.batch.render import bad_result, copied, render
from turnout.batch.sink import Sink
from turnout.batch.source import RawLine, Source, SourceError
from turnout.batch.tally import Tally, entry
from turnout.errors import TurnoutError
from turnout.ledger import LIVE, Intake, Ledger, NewJob, run
from turnout.request import InferenceRequest
from turnout.result import JobResult, JobStatus, Problem

CHUNK = 256
"""Jobs in one pipeline."""
SYNC_S = 1.0
"""Between two syncs of the journal; as long a finished job's result also stays in Redis."""
RECHECK_S = 10.0
"""How often jobs that are still out are asked after when none has settled: word of one may have been lost with a
connection, and the job itself with a Redis that lost its last second."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a batch is fed. Which results it gives depends on `defaults` alone."""

    defaults: Defaults = field(default_factory=Defaults)
    window: int = 5000
    """Most jobs in the queue at once."""
    window_bytes: int = 64 * 1024 * 1024
    """Most bytes of their requests, but for the last one."""
    dedupe: bool = False
    """Ask identical requests once."""
    max_cost_microusd: int | None = None
    retry_failed: bool = False
    """Run lines again that have no answer from an earlier run."""
    refusal: Callable[[InferenceRequest], str | None] | None = None
    """Says why no endpoint could ever serve a request; None: one could."""

    @property
    def kept(self) -> dict[str, Any]:
        """What may not change while the batch is under way."""
        return {**self.defaults.request, **self.defaults.constraints}


class Stopped(TurnoutError):
    """The batch was interrupted; what is done is kept."""


@dataclass(slots=True)
class _Out:
    """A job in the queue, and the lines that wait for it, without their requests; each with its digest."""

    job: NewJob
    lines: list[tuple[Item, int]]


@dataclass(slots=True)
class Feeder:
    """One run of one batch. Raises Stopped between two steps when `stopping()` says so."""

    client: redis.Redis
    ledger: Ledger
    source: Source
    sink: Sink
    options: Options
    stopping: Callable[[], object] = lambda: False
    _tally: Tally = field(default_factory=Tally, init=False)
    _out: dict[str, _Out] = field(default_factory=dict, init=False)
    _bytes: int = field(default=0, init=False)
    _purge: list[str] = field(default_factory=list, init=False)
    _early: deque[str] = field(default_factory=deque, init=False)
    """Jobs that were settled before this run submitted them."""
    _asked: dict[int, int] = field(default_factory=dict, init=False)
    """With `dedupe`: the line that has a job's result, by the job."""
    _synced_at: float = field(default_factory=time.monotonic, init=False)
    _rechecked_at: float = field(default_factory=time.monotonic, init=False)
    _exhausted: bool = field(default=False, init=False)
    """The whole input has been read, or as far as it can be."""
    _broken: SourceError | None = field(default=None, init=False)

    def run(self, on_progress: Callable[[Tally], None] = lambda tally: None) -> Tally:
        """Feed to the end. Raises SourceError when all is done of an input that can't be read to its end."""
        self._tally = self.sink.begin(self.options.kept, self.options.retry_failed)
        run(self.client, [self.ledger.set_ceiling(self.sink.batch, self.options.max_cost_microusd)])
        lines = self._lines()
        while not (self._exhausted and not self._out):
            self._step(wait=not self._feed(lines))
            on_progress(self._tally)
        self._checkpoint()
        if self._broken is not None:
            raise self._broken
        run(self.client, [self.ledger.set_ceiling(self.sink.batch, None)])
        on_progress(self._tally)
        return self._tally

    def _step(self, wait: bool) -> None:
        if self.stopping():
            self._checkpoint()
            raise Stopped("interrupted")
        self._collect(wait)
        if time.monotonic() - self._synced_at >= SYNC_S:
            self._checkpoint()

    # --- in ---------------------------------------------------------------------------------------------

    def _lines(self) -> Iterator[tuple[Item, int] | None]:
        """The lines that are to be run, with their digests; None for one that has its result or gets it here."""
        try:
            yield from self._read()
        except SourceError as error:
            self._broken = error
        self._exhausted = True

    def _read(self) -> Iterator[tuple[Item, int] | None]:
        unique, format, last = Uniqueness(), self.source.fixed_format, 0
        for raw in self.source:
            self._tally.lines += 1
            format, digest = format or detect(raw.data), raw.digest
            if last + 1 < raw.number:
                self.sink.drop(range(last + 1, raw.number), self._tally)  # blank lines, which may have been none
            last = raw.number
            if self.sink.has(raw.number, digest) and not self.options.dedupe:
                unique.note(known_id(raw.data, format), raw.number)
                yield None
                continue
            line = unique.check(parse(raw.data, raw.number, format, self.options.defaults))
            yield self._to_run(line, raw, digest)
        self.sink.drop(range(last + 1, sys.maxsize), self._tally)

    def _to_run(self, line: Item | BadLine, raw: RawLine, digest: int) -> tuple[Item, int] | None:
        if self.sink.has(raw.number, digest):
            if isinstance(line, Item):
                self._asked.setdefault(short(self._job_id(line, line.request.canonical_json())), line.line)
            return None
        self.sink.drop(range(raw.number, raw.number + 1), self._tally)
        refusal = self.options.refusal
        if isinstance(line, Item) and refusal and (why := refusal(line.request)):
            line = BadLine(line.line, line.custom_id, "refused", f"line {line.line}: {why}", line.format)
        if isinstance(line, Item):
            return line, digest
        result = bad_result(line)
        self._write(line, digest, {**entry(result), "status": "invalid"}, render(line, result))
        return None

    def _job_id(self, item: Item, payload: str) -> str:
        return job_id(self.sink.batch, item, payload, self.options.dedupe)

    def _feed(self, lines: Iterator[tuple[Item, int] | None]) -> bool:
        """Read on by at most one chunk, as far as the window has room. Tells whether anything was read."""
        room, limit = min(CHUNK, self.options.window - len(self._out)), self.options.window_bytes
        if room < CHUNK and len(self._out) > self.options.window // 2:
            return False  # let it drain a little, so that pipelines stay long
        if room <= 0 or self._bytes >= limit or self._exhausted:
            return False
        jobs: list[NewJob] = []
        for to_run in islice(lines, room):
            if to_run is None:
                continue
            item, digest = to_run
            payload = item.request.canonical_json()
            id, light = self._job_id(item, payload), (replace(item, request=_EMPTY), digest)
            if id in self._out:
                self._out[id].lines.append(light)
            elif self.options.dedupe and (first := self._asked.get(short(id))) is not None:
                self._share(first, *light)
            else:
                job = NewJob.of(id, item.request, payload, batch=self.sink.batch)
                self._out[id] = _Out(job, [light])
                self._bytes += len(job.payload)
                jobs.append(job)
                if self._bytes >= limit:
                    break
        self._submit(jobs)
        return True

    def _submit(self, jobs: list[NewJob]) -> None:
        while jobs:
            full = []
            answers = run(self.client, [self.ledger.enqueue(job) for job in jobs])
            for job, answer in zip(jobs, answers, strict=True):
                match answer.outcome:
                    case Intake.FULL:
                        full.append(job)
                    case Intake.DUPLICATE if answer.state not in LIVE:
                        self._early.append(job.id)
                    case Intake.EXPIRED:
                        problem = Problem(code="deadline", message="its deadline has passed")
                        self._ended(job.id, JobResult(id=job.id, status=JobStatus.EXPIRED, error=problem))
                    case Intake.CONFLICT:
                        problem = Problem(code="conflict", message="a job of this id exists with other content")
                        self._ended(job.id, JobResult(id=job.id, status=JobStatus.FAILED, error=problem))
            if full:
                self._step(wait=True)
                self._checkpoint()  # memory comes back as results leave
            jobs = full

    # --- out --------------------------------------------------------------------------------------------

    def _collect(self, wait: bool) -> None:
        """Take what has settled; with `wait`, for up to a quarter of a second if nothing has."""
        done = self.ledger.keys.done(self.sink.batch)
        ids = [self._early.popleft() for _ in range(min(CHUNK, len(self._early)))]
        taken: Any = self.client.lpop(done, CHUNK)
        if taken is None and wait and not ids and self._out:
            first: Any = self.client.blpop([done], 0.25)
            taken = [first[1]] if first else None
        ids += [one.decode() for one in taken or ()]
        if not ids and wait and time.monotonic() - self._rechecked_at >= RECHECK_S:
            self._rechecked_at = time.monotonic()
            ids = self._recheck()
        # Word may come twice, and of a job whose line this run has not reached yet: it is found settled then.
        ids = [id for id in dict.fromkeys(ids) if id in self._out]
        for id, result in zip(ids, run(self.client, [self.ledger.result(id) for id in ids]), strict=True):
            if result is not None:
                self._ended(id, result)

    def _recheck(self) -> list[str]:
        """Submit again what Redis has lost; gives the jobs that have settled."""
        ids = list(self._out)
        facts = dict(zip(ids, run(self.client, [self.ledger.facts(id) for id in ids]), strict=True))
        self._submit([self._out[id].job for id, job in facts.items() if job is None])
        return [id for id, job in facts.items() if job is not None and job.state not in LIVE]

    def _ended(self, id: str, result: JobResult) -> None:
        out = self._out.pop(id)
        self._bytes -= len(out.job.payload)
        (first, digest), *others = out.lines
        self._write(first, digest, entry(result), render(first, result))
        if self.options.dedupe:
            self._asked[short(id)] = first.line
        for item, digest in others:
            self._share(first.line, item, digest)
        self._purge.append(id)

    def _share(self, first: int, item: Item, digest: int) -> None:
        """Answer a line with what an identical one was answered: it costs nothing."""
        told, rendered = self.sink.copy(first)
        self._write(item, digest, {"status": told["status"], "shared": True}, copied(rendered, item))

    def _write(self, line: Item | BadLine, digest: int, told: dict[str, Any], rendered: bytes) -> None:
        self._tally.count(told)
        self.sink.write(line.line, digest, told, rendered)

    def _checkpoint(self) -> None:
        """Once results are on disk, and not before, they leave Redis."""
        self.sink.sync()
        self._synced_at = time.monotonic()
        starts = range(0, len(self._purge), CHUNK)
        run(self.client, [self.ledger.purge(self._purge[start : start + CHUNK]) for start in starts])
        self._purge.clear()


def read(source: Source, defaults: Defaults) -> Iterator[Item | BadLine]:
    """Every line of an input, as a request or as the reason why it is none."""
    unique, format = Uniqueness(), source.fixed_format
    for raw in source:
        format = format or detect(raw.data)
        yield unique.check(parse(raw.data, raw.number, format, defaults))


_EMPTY = InferenceRequest(prompt="")
