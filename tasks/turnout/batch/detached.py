"""Batches that workers feed on their own: handed over once, then watched, paused or fetched from anywhere.

Redis holds a record of each, with counts that the ledger keeps, and its lines, see `handover.py`. Workers feed chunk
after chunk, as far as a window allows (`background/batch_feeding.py`). Record and lines are kept until `KEPT_S` after
the batch's end, and each result as long after its job's end.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any
from uuid import uuid4

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from turnout.batch.chunk import MAX_CHUNK_JOBS
from turnout.batch.handover import hand_over, pages
from turnout.batch.jobs import ask_each, cancel, result_or_problem
from turnout.batch.line import Defaults
from turnout.batch.record import DETACHED, KEPT_S, Record, State, read_or_log, read_record
from turnout.batch.render import copied, never_run, render
from turnout.batch.source import Source, read
from turnout.errors import TurnoutError
from turnout.ledger import Ledger, run
from turnout.result import JobResult, JobStatus


class NoSuchBatch(TurnoutError):
    """There is no batch with this id, or its record has expired."""


class Batches:
    """The batches of one namespace."""

    def __init__(self, client: redis.Redis, ledger: Ledger) -> None:
        self._client = client
        self._ledger = ledger
        self._keys = ledger.keys

    def submit(
        self, source: Source, defaults: Defaults, max_cost_microusd: int | None = None, dedupe: bool = False
    ) -> str:
        """Hand over a whole input; returns the batch's id. The batch exists only when all of it is in Redis.

        dedupe: ask identical requests once.
        """
        id = f"{DETACHED}{uuid4().hex[:8]}"
        try:
            counts = hand_over(self._client, self._ledger, id, read(source, defaults), dedupe)
        except BaseException:
            self._client.delete(self._keys.batch_lines(id), self._keys.batch_input(id))
            raise
        name = source.name.encode(errors="backslashreplace")  # a file's name may be invalid UTF-8
        record = {"source": name, "state": State.FEEDING, "at": time.time(), "next": 0, "fed": 0, **counts}
        if max_cost_microusd is not None:
            record["max_cost_microusd"] = max_cost_microusd
        try:
            Retry(NoBackoff(), 1).call_with_retry(partial(self._begin, id, record), lambda error: None)
        except (redis.ConnectionError, redis.TimeoutError) as error:
            message = f"Redis can't be reached, and batch {id} may have been handed over"
            raise TurnoutError(f"{message}: `turnout batch show {id}` tells, once Redis is there") from error
        return id

    def _begin(self, id: str, record: Mapping[str, Any]) -> None:
        """Leave it to the workers. If the first reply is lost this is sent twice, and workers may have begun by then:
        so existing fields stay as they are."""
        keys = self._keys
        with self._client.pipeline() as pipe:
            for name, value in record.items():
                pipe.hsetnx(keys.batch(id), name, value)
            for key in (keys.batch(id), keys.batch_lines(id), keys.batch_input(id)):
                pipe.expire(key, KEPT_S)
            pipe.zadd(keys.batches, {id: record["at"]})
            pipe.execute()

    def all(self) -> list[Record]:
        """The latest first."""
        ids: Any = self._client.zrange(self._keys.batches, 0, -1)
        records = run(self._client, [read_or_log(self._keys, one.decode()) for one in reversed(ids)])
        return [record for record in records if record is not None]

    def record(self, id: str) -> Record:
        """Raises NoSuchBatch."""
        (record,) = run(self._client, [read_record(self._keys, id)])
        if record is None:
            raise NoSuchBatch(f"there is no batch {id}; `turnout batch list` shows all that there are")
        return record

    def output(self, id: str) -> Iterator[tuple[bool, bytes]]:
        """The lines of output so far, each with whether it has an answer, in the input's order."""
        record, jobs_seen = self.record(id), 0
        for page in pages(self._client, self._keys.batch_lines(id)):
            may_be_fed = jobs_seen < record.fed + MAX_CHUNK_JOBS
            results = self._results(one.job for one in page if one.job and (may_be_fed or one.shared))
            for one in page:
                result: JobResult | None
                if one.problem is not None:
                    result = never_run(one.problem)
                else:
                    jobs_seen += not one.shared
                    result = results[one.job] if one.job in results else _without_job(one.job, record, jobs_seen)
                if result is not None:
                    rendered = render(one.line, result)
                    yield result.succeeded, copied(rendered, one.line) if one.shared else rendered

    def _results(self, jobs: Iterable[str]) -> dict[str, JobResult | None]:
        """The result of each of these jobs that exists; None: it hasn't ended."""
        results = ask_each(self._client, partial(result_or_problem, self._ledger), jobs)
        facts = ask_each(self._client, self._ledger.facts, [job for job, result in results.items() if result is None])
        return {job: result for job, result in results.items() if result is not None or facts[job] is not None}

    def pause(self, id: str) -> None:
        """Stop feeding, and begin no call: queued jobs are parked. Calls in flight end."""
        self._move(id, State.PAUSED, State.FEEDING, State.PAUSED)

    def resume(self, id: str) -> None:
        self._move(id, State.FEEDING, State.PAUSED, State.FEEDING)
        run(self._client, [self._ledger.make_groups_due()])

    def cancel(self, id: str) -> int:
        """Stop feeding, and cancel what is queued, parked or in flight. Returns how many jobs were cancelled."""
        self._move(id, State.CANCELLED, State.FEEDING, State.PAUSED, State.CANCELLED)
        self._client.delete(self._keys.batch_input(id))
        return sum(cancel(self._client, self._ledger, id, jobs) for jobs in self._fed(id))

    def _move(self, id: str, after: State, *before: State, **fields: int) -> None:
        """Change the state. Raises NoSuchBatch, or TurnoutError if its current state doesn't allow that."""
        state = run(self._client, [self._ledger.move_batch(id, before, {"state": after, **fields})])[0]
        if state not in before:
            self.record(id)
            raise TurnoutError(f"batch {id} is {state}")

    def retry_failed(self, id: str, max_cost_microusd: int | None = None) -> int:
        """Replay its failed and expired jobs; returns how many. A line that expired before it was fed has no job and no
        request any more.

        max_cost_microusd: its ceiling from now on, including what it has spent; None: unchanged.
        """
        state = self.record(id).state
        if max_cost_microusd is not None:
            self._move(id, state, state, max_cost_microusd=max_cost_microusd)
            run(self._client, [self._ledger.set_ceiling(id, max_cost_microusd)])
        replayed = 0
        for jobs in self._fed(id):
            facts = ask_each(self._client, self._ledger.facts, jobs)
            ended = [one for one, job in facts.items() if job and job.state in ("failed", "expired")]
            replayed += sum(run(self._client, [self._ledger.replay(one, id) for one in ended]))
        return replayed

    def delete(self, id: str) -> None:
        """Delete it with its results. Raises TurnoutError until it has ended."""
        if not self.record(id).ended:
            raise TurnoutError(f"batch {id} has not ended; cancel it first")
        for page in pages(self._client, self._keys.batch_lines(id)):
            run(self._client, [self._ledger.purge([one.job for one in page if one.job])])
        self._client.delete(self._keys.batch(id), self._keys.batch_lines(id), self._keys.batch_input(id))
        self._client.zrem(self._keys.batches, id)
        run(self._client, [self._ledger.set_ceiling(id, None)])

    def _fed(self, id: str) -> Iterator[list[str]]:
        """Pages of jobs that have been fed, or may be in a chunk that is being fed."""
        left = self.record(id).fed + MAX_CHUNK_JOBS
        for page in pages(self._client, self._keys.batch_lines(id)):
            if left <= 0:
                return
            yield [one.job for one in page if one.job]
            left -= sum(bool(one.job) and not one.shared for one in page)


def _without_job(id: str, record: Record, number: int) -> JobResult | None:
    """The end of a line that never became a job; None: it may still become one. number: among all jobs of the batch."""
    if number <= record.fed:
        why = "its deadline had passed when it was fed, or it ended so long ago that its result is no longer kept"
        return JobResult.unanswered(id, JobStatus.EXPIRED, "deadline", why)
    if record.state is State.CANCELLED:
        return JobResult.unanswered(id, JobStatus.CANCELLED, "cancelled", "its batch was cancelled before it was fed")
    return None
