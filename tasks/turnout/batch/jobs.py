"""The jobs of a batch: their ids, and operations on some hundred at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, TypeVar

import redis

from turnout.errors import Unreadable
from turnout.ledger import Ledger, Operation, run
from turnout.ledger.operations import texts
from turnout.result import JobResult, JobStatus

T = TypeVar("T")

PAGE = 500
UNREADABLE = "unreadable"
"""Error code of a line whose result can't be read."""


def job_id(batch: str, which: int | str, payload: str) -> str:
    """The same line of the same batch always gives the same id, so that a rerun finds its job.

    which: distinguishes lines with the same request. Where they share a job it is their `url`, because that shapes the
    answer. payload: the canonical JSON of the request.
    """
    return hashlib.sha256(f"{batch}\0{which}\0{payload}".encode()).hexdigest()[:32]


def short_id(job_id: str) -> int:
    """Enough of an id to distinguish a batch's jobs, in little memory."""
    return int(job_id[:15], 16)


def ask_each(client: redis.Redis, ask: Callable[[str], Operation[T]], ids: Iterable[str]) -> dict[str, T]:
    """The reply of each job to the same operation, in one round trip."""
    ids = list(dict.fromkeys(ids))
    return dict(zip(ids, run(client, [ask(id) for id in ids]), strict=True))


def result_or_problem(ledger: Ledger, id: str) -> Operation[JobResult | None]:
    """The operation for a result. If it can't be read, the reason becomes the result of this line, and others go on."""
    operation = ledger.result(id)

    def decode(reply: Any) -> JobResult | None:
        try:
            return operation.decode(reply)
        except Unreadable as error:
            why = str(error)
        except ValueError:
            why = "its result in Redis was changed, or is of another release"
        return JobResult.unanswered(id, JobStatus.FAILED, UNREADABLE, why)

    return replace(operation, decode=decode)


def cancel(client: redis.Redis, ledger: Ledger, batch: str, ids: Iterable[str]) -> int:
    """Cancel jobs of a batch that are queued, parked or in flight. Returns how many were cancelled."""
    return sum(ended.accepted for ended in ask_each(client, lambda id: ledger.cancel(id, batch), ids).values())


def cancel_live(client: redis.Redis, ledger: Ledger, batch: str) -> int:
    """The same for all jobs of a `turnout run`. Redis has no record of it, so all live jobs are searched."""
    keys = ledger.keys
    with client.pipeline() as pipe:  # atomic, because jobs move between these indices
        for index in (*keys.all_pending, keys.awaiting_turn, keys.parked, keys.job_leases):
            pipe.zrange(index, 0, -1)
        members = [member for index in pipe.execute() for member in texts(index)]
    ids = list(dict.fromkeys(member.rpartition(" ")[2] for member in members))  # the last word of any member
    cancelled = 0
    for start in range(0, len(ids), PAGE):
        facts = ask_each(client, ledger.facts, ids[start : start + PAGE])
        ours = [id for id, job in facts.items() if job is not None and job.batch == batch]
        cancelled += cancel(client, ledger, batch, ours)
    return cancelled
