"""Feeds a batch through the ledger: a bounded window of jobs goes in, results come out as jobs settle.

There is one thread and one connection, and every step is a pipeline of many jobs. The window bounds the backlog of the
queue, in jobs and bytes, and so Redis's memory; results leave Redis when they are safe on disk. A job's id is derived
from batch and content, so whatever dies or is edited, the same command finds the jobs that are in flight or done.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import redis

from turnout.batch.jobs import UNREADABLE, ask_each, job_id, result_or_problem, short_id
from turnout.batch.journal import Journal
from turnout.batch.line import Line
from turnout.batch.reading import NotYet, Reading, Skipped, ToRun
from turnout.batch.render import copied, render
from turnout.batch.tally import Tally, numbers_of
from turnout.errors import TurnoutError
from turnout.ledger import LIVE, Intake, Ledger, NewJob, run
from turnout.request import InferenceRequest
from turnout.result import JobResult, JobStatus

CHUNK = 256
"""Jobs in one pipeline."""
SYNC_S = 1.0
"""Time between two syncs of the journal. A settled job's result stays in Redis until the next one."""
COLLECT_TIMEOUT_S = 0.25
"""How long to wait for a job to settle if there is nothing else to do."""
RECHECK_S = 10.0
"""If no job has settled for this long, all in flight are looked up: a notice may have been lost with a connection, or
the job itself with a Redis that lost its last second."""


class Stopped(TurnoutError):
    """The batch was interrupted; what is done is kept."""


@dataclass(slots=True)
class _InFlight:
    """A job in the queue."""

    payload: str
    """Its request as canonical JSON."""
    lines: list[Line]
    """Those that wait for it."""


@dataclass(slots=True)
class Feeder:
    """One run of one batch. Its results depend only on what is read."""

    client: redis.Redis
    ledger: Ledger
    reading: Reading
    stopping: Callable[[], object] = lambda: False
    """Polled; a true value raises Stopped."""
    window: int = 5000
    """Most jobs in the queue at a time."""
    window_bytes: int = 64 * 1024 * 1024
    """Most bytes of their requests; the last one may exceed it."""
    dedupe: bool = False
    """Ask identical requests once."""
    max_cost_microusd: int | None = None
    retry_failed: bool = False
    """Run lines again that have no answer in the journal."""
    _in_flight: dict[str, _InFlight] = field(default_factory=dict, init=False)
    _bytes: int = field(default=0, init=False)
    """Of the requests in flight."""
    _unsent: deque[NewJob] = field(default_factory=deque, init=False)
    """Jobs in flight that Redis doesn't have yet, or has lost."""
    _settled_before_submit: list[str] = field(default_factory=list, init=False)
    """Those of the last chunk."""
    _purge: list[str] = field(default_factory=list, init=False)
    """Jobs whose results are written, and may leave Redis once on disk."""
    _synced_at: float = field(default_factory=time.monotonic, init=False)
    _rechecked_at: float = field(default_factory=time.monotonic, init=False)

    def run(self, on_progress: Callable[[Tally], None] = lambda tally: None) -> Tally:
        """Feed all lines and collect their results. If the input can't be read to its end, raises SourceError when
        everything before is done."""
        tally = self.journal.tally
        # What was spent with an earlier Redis, whose books are gone, only the journal knows.
        spent_microusd, unsure_microusd = self._books()
        spent_at_earlier_redis = (
            max(0, tally.cost_microusd - spent_microusd),
            max(0, tally.unsure_microusd - unsure_microusd),
        )
        ceiling = (
            None if self.max_cost_microusd is None else max(0, self.max_cost_microusd - sum(spent_at_earlier_redis))
        )
        run(self.client, [self.ledger.set_ceiling(self.journal.batch, ceiling)])
        reading, lines = self.reading, self.reading.lines()
        while not reading.ended or self._in_flight:
            more = bool(self._unsent) or self._read(lines)
            has_room = self._send()
            if self.stopping():
                self._checkpoint()
                raise Stopped("interrupted")
            idle = reading.ended or not (more and has_room)
            self._collect(COLLECT_TIMEOUT_S if idle else 0)
            if time.monotonic() - self._synced_at >= SYNC_S:
                self._checkpoint()
            on_progress(tally)
        self._checkpoint()
        # The books also have calls without a result: their worker died, or their line was edited meanwhile.
        spent_microusd, unsure_microusd = self._books()
        tally.cost_microusd = max(tally.cost_microusd, spent_at_earlier_redis[0] + spent_microusd)
        tally.unsure_microusd = max(tally.unsure_microusd, spent_at_earlier_redis[1] + unsure_microusd)
        if reading.broken is not None:
            raise reading.broken
        self.journal.end()
        run(self.client, [self.ledger.set_ceiling(self.journal.batch, None)])
        on_progress(tally)
        return tally

    @property
    def journal(self) -> Journal:
        return self.reading.journal

    @property
    def in_flight(self) -> int:
        """How many jobs are in the queue."""
        return len(self._in_flight)

    def requests_in_flight(self) -> Iterator[InferenceRequest]:
        return (InferenceRequest.model_validate_json(job.payload) for job in self._in_flight.values())

    def _books(self) -> tuple[int, int]:
        """Micro-dollars that Redis has as spent, and as unsure."""
        return run(self.client, [self.ledger.money(self.journal.batch)])[0]

    # --- in ---------------------------------------------------------------------------------------------

    def _read(self, lines: Iterator[ToRun | Skipped | NotYet]) -> bool:
        """Read at most one chunk, as far as the window has room. Returns whether more may be there already."""
        room, limit = self.window - len(self._in_flight), self.window_bytes
        if self._bytes >= limit or room < min(CHUNK, self.window / 2):
            return False  # let it drain a little, so that pipelines stay long
        for to_run in islice(lines, min(CHUNK, room)):
            if isinstance(to_run, NotYet):
                return False
            if isinstance(to_run, Skipped):
                continue
            line, request = to_run
            payload = request.canonical_json()
            id = job_id(self.journal.batch, line.url if self.dedupe else line.digest, payload)
            if id in self._in_flight:
                self._in_flight[id].lines.append(line)
            elif self.dedupe and (found := self.journal.of_job(short_id(id))) is not None:
                self._share(*found, line)
            else:
                self._in_flight[id] = _InFlight(payload, [line])
                self._bytes += len(payload)
                self._unsent.append(NewJob.of(id, request, payload, batch=self.journal.batch))
                if self._bytes >= limit:
                    break
        return True

    def _send(self) -> bool:
        """Send a chunk of the unsent jobs. Returns whether Redis has room for more."""
        jobs = [self._unsent.popleft() for _ in range(min(CHUNK, len(self._unsent)))]
        full = []
        for job, answer in zip(jobs, run(self.client, [self.ledger.enqueue(job) for job in jobs]), strict=True):
            match answer.outcome:
                case Intake.FULL:
                    full.append(job)
                case Intake.DUPLICATE if self.retry_failed and answer.state not in (*LIVE, "succeeded"):
                    run(self.client, [self.ledger.purge([job.id])])  # left there by a killed run
                    self._unsent.append(job)
                case Intake.DUPLICATE if answer.state not in LIVE:
                    self._settled_before_submit.append(job.id)
                case Intake.EXPIRED:
                    why = "its deadline has passed"
                    self._ended(JobResult.unanswered(job.id, JobStatus.EXPIRED, "deadline", why))
        self._unsent.extendleft(reversed(full))  # until results have left and memory is free again
        return not full

    # --- out --------------------------------------------------------------------------------------------

    def _collect(self, timeout_s: float) -> None:
        """Take the jobs that have settled, waiting for the first if there are none."""
        done = self.ledger.keys.done(self.journal.batch)
        ids, self._settled_before_submit = self._settled_before_submit, []
        settled: Any = self.client.lpop(done, CHUNK)
        if settled is None and timeout_s and not ids and self._in_flight:
            first: Any = self.client.blpop([done], timeout_s)
            settled = [first[1]] if first else None
        ids += [one.decode() for one in settled or ()]
        if not ids and timeout_s and time.monotonic() - self._rechecked_at >= RECHECK_S:
            self._rechecked_at = time.monotonic()
            ids = self._recheck()
        # A notice may come twice, or for a job whose line this run hasn't reached: it will be found settled then.
        ids = [id for id in ids if id in self._in_flight]
        for result in ask_each(self.client, partial(result_or_problem, self.ledger), ids).values():
            if result is not None:
                self._ended(result)

    def _recheck(self) -> list[str]:
        """Find the jobs that Redis has lost, to send them again; returns those that have settled."""
        facts = ask_each(self.client, self.ledger.facts, self._in_flight)
        lost = [(id, self._in_flight[id].payload) for id, job in facts.items() if job is None]
        self._unsent = deque(
            NewJob.of(id, InferenceRequest.model_validate_json(payload), payload, batch=self.journal.batch)
            for id, payload in lost
        )
        return [id for id, job in facts.items() if job is not None and job.state not in LIVE]

    def _ended(self, result: JobResult) -> None:
        id, job = result.id, self._in_flight.pop(result.id)
        self._bytes -= len(job.payload)
        first, *others = job.lines
        rendered = render(first, result)
        self.journal.write(
            first.number, first.digest, numbers_of(result), rendered, short_id(id) if self.dedupe else None
        )
        for line in others:
            self._share(result.status.value, rendered, line)
        if result.error is None or result.error.code != UNREADABLE:  # it may be paid for, and a later run may read it
            self._purge.append(id)

    def _share(self, status: str, rendered: bytes, line: Line) -> None:
        """Answer a line with the answer of an identical one: it costs nothing."""
        self.journal.write(line.number, line.digest, {"status": status, "shared": True}, copied(rendered, line))

    def _checkpoint(self) -> None:
        """Results leave Redis only once they are on disk."""
        self.journal.sync()
        self._synced_at = time.monotonic()
        starts = range(0, len(self._purge), CHUNK)
        run(self.client, [self.ledger.purge(self._purge[start : start + CHUNK]) for start in starts])
        self._purge.clear()
