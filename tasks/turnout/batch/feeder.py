"""Feeds a batch through the ledger: a bounded window of jobs in, results out as they settle, nothing twice.

One thread and one connection; every step is a pipeline of many jobs. The window bounds the queue's backlog, in
jobs and bytes, and so Redis's memory: results leave Redis when they are safe on disk. A job's id comes from batch,
line and content, so that whatever dies, the same command finds the jobs that are under way or done.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import redis

from turnout.batch.lines import BadLine, Defaults, Item, Uniqueness, detect, job_id, parse
from turnout.batch.render import bad_result, render
from turnout.batch.sink import Sink
from turnout.batch.source import Source
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
"""How often jobs that are still out are asked after, in case word of one was lost with a connection."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a batch is fed. Which results it gives depends on `defaults` alone."""

    batch: str
    """Its name: the same batch resumes."""
    defaults: Defaults = field(default_factory=Defaults)
    window: int = 5000
    """Most jobs in the queue at once."""
    window_bytes: int = 64 * 1024 * 1024
    """Most bytes of their requests."""
    dedupe: bool = False
    """Ask identical requests once."""
    max_cost_microusd: int | None = None
    refusal: Callable[[InferenceRequest], str | None] | None = None
    """Says why no endpoint could ever serve a request; None: one could."""


class Stopped(TurnoutError):
    """The batch was interrupted; what is done is kept."""


class Feeder:
    """One run of one batch."""

    def __init__(self, client: redis.Redis, ledger: Ledger, source: Source, sink: Sink, options: Options) -> None:
        self._client = client
        self._ledger = ledger
        self._source = source
        self._sink = sink
        self._options = options
        self._out: dict[str, list[Item]] = {}
        """Jobs in the queue, with the lines that wait for each; their requests are left out, to save memory."""
        self._sizes: dict[str, int] = {}
        self._bytes = 0
        self._purge: list[str] = []
        self._early: deque[str] = deque()
        """Jobs that were settled before this run submitted them."""
        self._synced_at = self._rechecked_at = time.monotonic()
        self.exhausted = False
        """The whole input has been read."""

    def run(self, on_progress: Callable[[Tally], None], stopping: Callable[[], bool] = lambda: False) -> Tally:
        """Feed to the end. Raises Stopped between two steps when `stopping()` says so."""
        tally = self._sink.begin(self._fingerprint())
        if self._options.max_cost_microusd is not None:
            limit = f"batch:{self._options.batch}|limit"
            self._client.hset(self._ledger.keys.money, limit, str(self._options.max_cost_microusd))
        lines = self._lines(tally)
        while not (self.exhausted and not self._out):
            if stopping():
                self._checkpoint()
                raise Stopped("interrupted")
            fed = self._feed(lines, tally)
            self._collect(tally, wait=not fed)
            if time.monotonic() - self._synced_at >= SYNC_S:
                self._checkpoint()
            on_progress(tally)
        self._checkpoint()
        on_progress(tally)
        return tally

    def _fingerprint(self) -> str:
        """What the results depend on, besides the input itself: the name of the batch and the defaults."""
        defaults = self._options.defaults
        text = repr((self._options.batch, sorted(defaults.request.items()), sorted(defaults.constraints.items())))
        return f"turnout-batch-1 {hashlib.sha256(text.encode()).hexdigest()[:32]}"

    # --- in ---------------------------------------------------------------------------------------------

    def _lines(self, tally: Tally) -> Iterator[Item]:
        """The lines that are to be run. Those that can't be are written to the output on the way."""
        for line in read(self._source, self._options.defaults):
            tally.lines += 1
            if self._sink.has(line.line):
                continue
            if isinstance(line, Item) and (why := self._refused(line)):
                line = BadLine(line.line, line.custom_id, "refused", why, line.format)
            if isinstance(line, BadLine):
                self._write(line, bad_result(line), tally)
            else:
                yield line
        self.exhausted = True

    def _refused(self, line: Item) -> str | None:
        return self._options.refusal(line.request) if self._options.refusal else None

    def _feed(self, lines: Iterator[Item], tally: Tally) -> int:
        """Top up the window by at most one chunk; returns how many jobs were added."""
        room = min(CHUNK, self._options.window - len(self._out))
        if room < CHUNK and len(self._out) > self._options.window // 2:
            return 0  # let it drain a little, so that pipelines stay long
        if room <= 0 or self._bytes >= self._options.window_bytes or self.exhausted:
            return 0
        jobs: list[NewJob] = []
        for item in islice(lines, room):
            line = None if self._options.dedupe else item.line
            id = job_id(self._options.batch, line, item.request)
            waiting = self._out.setdefault(id, [])
            waiting.append(_light(item))
            if len(waiting) == 1:
                job = NewJob.of(id, item.request, batch=self._options.batch)
                self._sizes[id] = len(job.payload)
                self._bytes += len(job.payload)
                jobs.append(job)
        self._submit(jobs, tally)
        return len(jobs)

    def _submit(self, jobs: list[NewJob], tally: Tally) -> None:
        while jobs:
            full = []
            answers = run(self._client, [self._ledger.enqueue(job) for job in jobs])
            for job, answer in zip(jobs, answers, strict=True):
                match answer.outcome:
                    case Intake.FULL:
                        full.append(job)
                    case Intake.DUPLICATE if answer.state not in LIVE:
                        self._early.append(job.id)
                    case Intake.EXPIRED:
                        problem = Problem(code="deadline", message="its deadline has passed")
                        self._ended(job.id, JobResult(id=job.id, status=JobStatus.EXPIRED, error=problem), tally)
                    case Intake.CONFLICT:
                        problem = Problem(code="conflict", message="a job of this id exists with other content")
                        self._ended(job.id, JobResult(id=job.id, status=JobStatus.FAILED, error=problem), tally)
            if full:
                self._collect(tally, wait=True)  # memory comes back as results leave
                self._checkpoint()
            jobs = full

    # --- out --------------------------------------------------------------------------------------------

    def _collect(self, tally: Tally, wait: bool) -> None:
        """Take what has settled; with `wait`, for up to a quarter of a second if nothing has."""
        done = self._ledger.keys.done(self._options.batch)
        ids = [self._early.popleft() for _ in range(min(CHUNK, len(self._early)))]
        taken: Any = self._client.lpop(done, CHUNK)
        if taken is None and wait and not ids and self._out:
            first: Any = self._client.blpop([done], 0.25)
            taken = [first[1]] if first else None
        ids += [one.decode() for one in taken or ()]
        if not ids and wait and time.monotonic() - self._rechecked_at >= RECHECK_S:
            self._rechecked_at = time.monotonic()
            ids = list(self._out)
        if ids:
            results = run(self._client, [self._ledger.result(id) for id in ids])
            for id, result in zip(ids, results, strict=True):
                if result is not None:
                    self._ended(id, result, tally)

    def _ended(self, id: str, result: JobResult, tally: Tally) -> None:
        self._bytes -= self._sizes.pop(id, 0)
        for number, item in enumerate(self._out.pop(id, ())):
            self._write(item, result if number == 0 else _shared(result), tally)
        self._purge.append(id)

    def _write(self, line: Item | BadLine, result: JobResult, tally: Tally) -> None:
        told = entry(result)
        if isinstance(line, BadLine):
            told["status"] = "invalid"
        tally.add(told)
        self._sink.write(line.line, told, render(line, result))

    def _checkpoint(self) -> None:
        """Once results are on disk, and not before, they leave Redis."""
        self._sink.sync()
        self._synced_at = time.monotonic()
        for start in range(0, len(self._purge), CHUNK):
            run(self._client, [self._ledger.purge(self._purge[start : start + CHUNK])])
        self._purge.clear()


def read(source: Source, defaults: Defaults) -> Iterator[Item | BadLine]:
    """Every line of an input, as a request or as the reason why it is none."""
    unique, format = Uniqueness(), source.fixed_format
    for raw in source:
        format = format or detect(raw.data)
        yield unique.check(parse(raw.data, raw.number, format, defaults))


_EMPTY = InferenceRequest(prompt="")


def _light(item: Item) -> Item:
    return replace(item, request=_EMPTY)


def _shared(result: JobResult) -> JobResult:
    """The result as a further line of the same content has it: it cost nothing more."""
    response = result.response and result.response.model_copy(update={"cost_microusd": 0})
    return result.model_copy(update={"cost_microusd": 0, "unsure_microusd": 0, "attempts": (), "response": response})
