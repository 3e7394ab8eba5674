"""Feeds a batch through the ledger: a bounded window of jobs goes in, results come out as jobs settle.

There is one thread and one connection, and every step is a pipeline of many jobs. The window bounds the backlog of the
queue, in jobs and bytes, and so Redis's memory; results leave Redis when they are safe on disk. A job's id follows from
batch and content, so whatever dies or is edited, the same command finds the jobs that are under way or done.
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

from turnout.batch.jobs import UNREADABLE, job_id, of_each, short, whatever_it_is
from turnout.batch.journal import Journal
from turnout.batch.line import Line
from turnout.batch.reading import Passed, Reading, ToRun
from turnout.batch.render import copied, render
from turnout.batch.tally import Tally, entry
from turnout.errors import TurnoutError
from turnout.ledger import LIVE, Intake, Ledger, NewJob, run
from turnout.request import InferenceRequest
from turnout.result import JobResult, JobStatus

CHUNK = 256
"""Jobs in one pipeline."""
SYNC_S = 1.0
"""Time between two syncs of the journal. A finished job's result stays in Redis until the next one."""
RECHECK_S = 10.0
"""If no job has settled for so long, all that are out are looked up: word of one may have been lost with a connection,
and the job itself with a Redis that lost its last second."""


class Stopped(TurnoutError):
    """The batch was interrupted; what is done is kept."""


@dataclass(slots=True)
class _Out:
    """What a job in the queue asks, as canonical JSON, and the lines that wait for it."""

    payload: str
    lines: list[Line]


@dataclass(slots=True)
class Feeder:
    """One run of one batch. Which results it gives depends on what is read alone."""

    client: redis.Redis
    ledger: Ledger
    reading: Reading
    stopping: Callable[[], object] = lambda: False
    """Asked again and again; what is true then raises Stopped."""
    window: int = 5000
    """Most jobs in the queue at once."""
    window_bytes: int = 64 * 1024 * 1024
    """Most bytes of their requests; the last one may exceed it."""
    dedupe: bool = False
    """Ask identical requests once."""
    max_cost_microusd: int | None = None
    retry_failed: bool = False
    """Run lines again that have no answer in the journal."""
    _out: dict[str, _Out] = field(default_factory=dict, init=False)
    _bytes: int = field(default=0, init=False)
    """Of the requests that are out."""
    _unsent: deque[NewJob] = field(default_factory=deque, init=False)
    """Of the jobs that are out, those that Redis does not have yet, or has lost."""
    _early: list[str] = field(default_factory=list, init=False)
    """Jobs of the last chunk that were settled before this run submitted them."""
    _purge: list[str] = field(default_factory=list, init=False)
    """Jobs whose results are written, and may leave Redis once they are on disk."""
    _synced_at: float = field(default_factory=time.monotonic, init=False)
    _rechecked_at: float = field(default_factory=time.monotonic, init=False)

    def run(self, on_progress: Callable[[Tally], None] = lambda tally: None) -> Tally:
        """Feed to the end what has begun. Raises SourceError when all is done of an input that can't be read to its
        end."""
        tally = self.journal.tally
        # What was spent at an earlier Redis, whose books are gone, is known to the journal alone.
        spent_microusd, unsure_microusd = self._books()
        gone = max(0, tally.cost_microusd - spent_microusd), max(0, tally.unsure_microusd - unsure_microusd)
        ceiling = None if self.max_cost_microusd is None else max(0, self.max_cost_microusd - sum(gone))
        run(self.client, [self.ledger.set_ceiling(self.journal.batch, ceiling)])
        reading, lines = self.reading, self.reading.lines()
        while not reading.ended or self._out:
            more = bool(self._unsent) or self._read(lines)
            has_room = self._send()
            if self.stopping():
                self._checkpoint()
                raise Stopped("interrupted")
            self._collect(wait=reading.ended or not (more and has_room))
            if time.monotonic() - self._synced_at >= SYNC_S:
                self._checkpoint()
            on_progress(tally)
        self._checkpoint()
        # No result tells of a call whose worker died with it, or whose line was edited meanwhile; the books do.
        spent_microusd, unsure_microusd = self._books()
        tally.cost_microusd = max(tally.cost_microusd, gone[0] + spent_microusd)
        tally.unsure_microusd = max(tally.unsure_microusd, gone[1] + unsure_microusd)
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
    def under_way(self) -> int:
        """How many jobs are out."""
        return len(self._out)

    def waiting(self) -> Iterator[InferenceRequest]:
        """What is asked of the queue just now."""
        return (InferenceRequest.model_validate_json(out.payload) for out in self._out.values())

    def _books(self) -> tuple[int, int]:
        """What Redis knows to be spent, and what may be besides, in micro-dollars."""
        return run(self.client, [self.ledger.money(self.journal.batch)])[0]

    # --- in ---------------------------------------------------------------------------------------------

    def _read(self, lines: Iterator[ToRun | Passed]) -> bool:
        """Read on by at most one chunk, as far as the window has room. Tells whether there may be more at once."""
        room, limit = self.window - len(self._out), self.window_bytes
        if self._bytes >= limit or room < min(CHUNK, self.window / 2):
            return False  # let it drain a little, so that pipelines stay long
        for to_run in islice(lines, min(CHUNK, room)):
            if to_run is Passed.LATE:
                return False
            if isinstance(to_run, Passed):
                continue
            line, request = to_run
            payload = request.canonical_json()
            id = job_id(self.journal.batch, line.url if self.dedupe else line.digest, payload)
            if id in self._out:
                self._out[id].lines.append(line)
            elif self.dedupe and (found := self.journal.of_job(short(id))) is not None:
                self._share(*found, line)
            else:
                self._out[id] = _Out(payload, [line])
                self._bytes += len(payload)
                self._unsent.append(NewJob.of(id, request, payload, batch=self.journal.batch))
                if self._bytes >= limit:
                    break
        return True

    def _send(self) -> bool:
        """Send a chunk of what is unsent. Tells whether Redis has room for more."""
        jobs = [self._unsent.popleft() for _ in range(min(CHUNK, len(self._unsent)))]
        full = []
        for job, answer in zip(jobs, run(self.client, [self.ledger.enqueue(job) for job in jobs]), strict=True):
            match answer.outcome:
                case Intake.FULL:
                    full.append(job)
                case Intake.DUPLICATE if self.retry_failed and answer.state not in (*LIVE, "succeeded"):
                    run(self.client, [self.ledger.purge([job.id])])  # a killed run has left it there
                    self._unsent.append(job)
                case Intake.DUPLICATE if answer.state not in LIVE:
                    self._early.append(job.id)
                case Intake.EXPIRED:
                    late = "its deadline has passed"
                    self._ended(JobResult.unanswered(job.id, JobStatus.EXPIRED, "deadline", late))
        self._unsent.extendleft(reversed(full))  # until results have left, and memory is back
        return not full

    # --- out --------------------------------------------------------------------------------------------

    def _collect(self, wait: bool) -> None:
        """Take what has settled; with `wait`, for up to a quarter of a second if nothing has."""
        done = self.ledger.keys.done(self.journal.batch)
        ids, self._early = self._early, []
        taken: Any = self.client.lpop(done, CHUNK)
        if taken is None and wait and not ids and self._out:
            first: Any = self.client.blpop([done], 0.25)
            taken = [first[1]] if first else None
        ids += [one.decode() for one in taken or ()]
        if not ids and wait and time.monotonic() - self._rechecked_at >= RECHECK_S:
            self._rechecked_at = time.monotonic()
            ids = self._recheck()
        # Word may come twice, and of a job whose line this run has not reached yet: it is found settled then.
        ids = [id for id in ids if id in self._out]
        for result in of_each(self.client, partial(whatever_it_is, self.ledger), ids).values():
            if result is not None:
                self._ended(result)

    def _recheck(self) -> list[str]:
        """Find what Redis has lost, to be sent again; gives the jobs that have settled."""
        facts = of_each(self.client, self.ledger.facts, self._out)
        lost = [(id, self._out[id].payload) for id, job in facts.items() if job is None]
        self._unsent = deque(
            NewJob.of(id, InferenceRequest.model_validate_json(payload), payload, batch=self.journal.batch)
            for id, payload in lost
        )
        return [id for id, job in facts.items() if job is not None and job.state not in LIVE]

    def _ended(self, result: JobResult) -> None:
        id, out = result.id, self._out.pop(result.id)
        self._bytes -= len(out.payload)
        first, *others = out.lines
        rendered = render(first, result)
        self.journal.write(first.number, first.digest, entry(result), rendered, short(id) if self.dedupe else None)
        for line in others:
            self._share(result.status.value, rendered, line)
        if result.error is None or result.error.code != UNREADABLE:  # it may be paid for: a retry may read it
            self._purge.append(id)

    def _share(self, status: str, rendered: bytes, line: Line) -> None:
        """Answer a line with what an identical one was answered: it costs nothing."""
        self.journal.write(line.number, line.digest, {"status": status, "shared": True}, copied(rendered, line))

    def _checkpoint(self) -> None:
        """Once results are on disk, and not before, they leave Redis."""
        self.journal.sync()
        self._synced_at = time.monotonic()
        starts = range(0, len(self._purge), CHUNK)
        run(self.client, [self.ledger.purge(self._purge[start : start + CHUNK]) for start in starts])
        self._purge.clear()
