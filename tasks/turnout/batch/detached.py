"""Batches that workers feed on their own: handed over once, then looked at, paused or fetched from anywhere.

Redis holds a record of each, with counts that the ledger keeps, and its lines, see `handover.py`. Workers feed chunk
after chunk, as far as a window allows (`background/batch_feeding.py`). Both are kept until `KEPT_S` after its end, and
each result for as long from when its job has ended.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any
from uuid import uuid4

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from turnout.batch.chunk import LINES
from turnout.batch.handover import hand_over, pages
from turnout.batch.jobs import cancel, of_each, whatever_it_is
from turnout.batch.line import Defaults
from turnout.batch.record import DETACHED, KEPT_S, Record, State, read_if_known, read_record
from turnout.batch.render import copied, never_run, render
from turnout.batch.source import Source, read
from turnout.errors import TurnoutError
from turnout.ledger import Ledger, run
from turnout.result import JobResult, JobStatus


class NoSuchBatch(TurnoutError):
    """There is none of this name, or its record has expired."""


class Batches:
    """The batches of one namespace."""

    def __init__(self, client: redis.Redis, ledger: Ledger) -> None:
        self._client = client
        self._ledger = ledger
        self._keys = ledger.keys

    def submit(
        self, source: Source, defaults: Defaults, max_cost_microusd: int | None = None, dedupe: bool = False
    ) -> str:
        """Hand a whole input over; gives the batch's id. Until all of it is in Redis, there is no such batch.

        dedupe: ask identical requests once.
        """
        id = f"{DETACHED}{uuid4().hex[:8]}"
        try:
            counts = hand_over(self._client, self._ledger, id, read(source, defaults), dedupe)
        except BaseException:
            self._client.delete(self._keys.batch_lines(id), self._keys.batch_input(id))
            raise
        name = source.name.encode(errors="backslashreplace")  # of a file it may be no UTF-8
        record = {"source": name, "state": State.FEEDING, "at": time.time(), "next": 0, "fed": 0, **counts}
        if max_cost_microusd is not None:
            record["max_cost_microusd"] = max_cost_microusd
        try:
            Retry(NoBackoff(), 1).call_with_retry(partial(self._begin, id, record), lambda error: None)
        except (redis.ConnectionError, redis.TimeoutError) as error:
            told = f"Redis can't be reached, and batch {id} may have been handed over"
            raise TurnoutError(f"{told}: `turnout batch show {id}` tells, once Redis is there") from error
        return id

    def _begin(self, id: str, record: Mapping[str, Any]) -> None:
        """Leave it to the workers. It may be sent twice, for the first reply may be lost, and workers may have begun by
        then: so what is there already stays as it is."""
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
        records = run(self._client, [read_if_known(self._keys, one.decode()) for one in reversed(ids)])
        return [record for record in records if record is not None]

    def record(self, id: str) -> Record:
        """Raises NoSuchBatch."""
        (found,) = run(self._client, [read_record(self._keys, id)])
        if found is None:
            raise NoSuchBatch(f"there is no batch {id}; `turnout batch list` shows those that there are")
        return found

    def output(self, id: str) -> Iterator[tuple[bool, bytes]]:
        """The lines of output of those that have ended, each with whether it has an answer, in the input's order."""
        record, number = self.record(id), 0
        for page in pages(self._client, self._keys.batch_lines(id)):
            fed = page if number < record.fed + LINES else [one for one in page if one.shared]
            jobs = [one.job for one in fed if one.job]
            results = of_each(self._client, partial(whatever_it_is, self._ledger), jobs)
            gone = [job for job, result in results.items() if result is None]
            facts = of_each(self._client, self._ledger.facts, gone)
            for one in page:
                result: JobResult | None
                if one.problem is not None:
                    result = never_run(one.problem)
                else:
                    number += not one.shared
                    result = results.get(one.job)
                    if result is None and facts.get(one.job) is None:
                        result = _without_job(one.job, record, fed=number <= record.fed)
                if result is not None:
                    rendered = render(one.line, result)
                    yield result.succeeded, copied(rendered, one.line) if one.shared else rendered

    def pause(self, id: str) -> None:
        """Feed no more, and begin no call: jobs that are queued already are parked. Calls under way end."""
        self._move(id, State.PAUSED, State.FEEDING, State.PAUSED)

    def resume(self, id: str) -> None:
        self._move(id, State.FEEDING, State.PAUSED, State.FEEDING)
        run(self._client, [self._ledger.make_groups_due()])

    def cancel(self, id: str) -> int:
        """Feed no more, and cancel what is queued, parked or in flight. Returns how many jobs that were."""
        self._move(id, State.CANCELLED, State.FEEDING, State.PAUSED, State.CANCELLED)
        self._client.delete(self._keys.batch_input(id))
        return sum(cancel(self._client, self._ledger, id, jobs) for jobs in self._fed(id))

    def _move(self, id: str, after: State, *before: State, **fields: int) -> None:
        """Raises NoSuchBatch, or TurnoutError if it may not come from the state that it is in."""
        state = run(self._client, [self._ledger.move_batch(id, before, {"state": after, **fields})])[0]
        if state not in before:
            self.record(id)
            raise TurnoutError(f"batch {id} is {state}")

    def retry_failed(self, id: str, max_cost_microusd: int | None = None) -> int:
        """Run its failed and expired jobs again; gives how many. Of a line that had expired before it was fed, there is
        no job and no request any more.

        max_cost_microusd: its ceiling from now on, what it has spent included; None: the one that it has.
        """
        state = self.record(id).state
        if max_cost_microusd is not None:
            self._move(id, state, state, max_cost_microusd=max_cost_microusd)
            run(self._client, [self._ledger.set_ceiling(id, max_cost_microusd)])
        again = 0
        for jobs in self._fed(id):
            facts = of_each(self._client, self._ledger.facts, jobs)
            ended = [one for one, job in facts.items() if job and job.state in ("failed", "expired")]
            again += sum(run(self._client, [self._ledger.replay(one, id) for one in ended]))
        return again

    def delete(self, id: str) -> None:
        """Drop it with its results. Raises TurnoutError while jobs of it are to be run or under way."""
        if not self.record(id).ended:
            raise TurnoutError(f"batch {id} has not ended; cancel it first")
        for page in pages(self._client, self._keys.batch_lines(id)):
            run(self._client, [self._ledger.purge([one.job for one in page if one.job])])
        self._client.delete(self._keys.batch(id), self._keys.batch_lines(id), self._keys.batch_input(id))
        self._client.zrem(self._keys.batches, id)
        run(self._client, [self._ledger.set_ceiling(id, None)])

    def _fed(self, id: str) -> Iterator[list[str]]:
        """Pages of jobs that have been fed, or may be of a chunk that is being fed."""
        left = self.record(id).fed + LINES
        for page in pages(self._client, self._keys.batch_lines(id)):
            if left <= 0:
                return
            yield [one.job for one in page if one.job]
            left -= sum(bool(one.job) and not one.shared for one in page)


def _without_job(id: str, record: Record, fed: bool) -> JobResult | None:
    """The end of a line that never became a job; None: it may become one."""
    if fed:
        why = "its deadline had passed when it was fed, or it ended so long ago that its result is no longer kept"
        return JobResult.unanswered(id, JobStatus.EXPIRED, "deadline", why)
    if record.state is State.CANCELLED:
        return JobResult.unanswered(id, JobStatus.CANCELLED, "cancelled", "its batch was cancelled before it was fed")
    return None
