"""The jobs of a batch: their ids, and what is asked of Redis about some hundred at a time."""

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
"""What the end of a line says whose result can't be read."""


def job_id(batch: str, which: int | str, payload: str) -> str:
    """The same line of the same batch always gives the same id, so that a rerun finds its job.

    which: what tells lines that ask the same apart; the `url` of each where they share a job, for it shapes the answer.
    payload: the canonical JSON of its request.
    """
    return hashlib.sha256(f"{batch}\0{which}\0{payload}".encode()).hexdigest()[:32]


def short(job_id: str) -> int:
    """Enough of it to tell a batch's jobs apart, in little memory."""
    return int(job_id[:15], 16)


def of_each(client: redis.Redis, what: Callable[[str], Operation[T]], ids: Iterable[str]) -> dict[str, T]:
    """The reply of each job to the same call, in one round trip."""
    ids = list(dict.fromkeys(ids))
    return dict(zip(ids, run(client, [what(id) for id in ids]), strict=True))


def whatever_it_is(ledger: Ledger, id: str) -> Operation[JobResult | None]:
    """Asks for a result; of one that can't be read, says why: that is the end of its line, and of no other."""
    call = ledger.result(id)

    def decode(reply: Any) -> JobResult | None:
        try:
            return call.decode(reply)
        except Unreadable as error:
            why = str(error)
        except ValueError:
            why = "its result in Redis was changed, or is of another release"
        return JobResult.unanswered(id, JobStatus.FAILED, UNREADABLE, why)

    return replace(call, decode=decode)


def cancel(client: redis.Redis, ledger: Ledger, batch: str, ids: Iterable[str]) -> int:
    """Cancel jobs of a batch that are queued, parked or in flight. Returns how many that were."""
    return sum(ended.accepted for ended in of_each(client, lambda id: ledger.cancel(id, batch), ids).values())


def cancel_live(client: redis.Redis, ledger: Ledger, batch: str) -> int:
    """The same for all of a `turnout run`, of which Redis has no record: they are sought among all that are live."""
    keys = ledger.keys
    with client.pipeline() as pipe:  # at one moment, for a job goes from one index to the next
        for index in (*keys.all_pending, keys.awaiting_turn, keys.parked, keys.job_leases):
            pipe.zrange(index, 0, -1)
        members = [member for found in pipe.execute() for member in texts(found)]
    ids = list(dict.fromkeys(member.rpartition(" ")[2] for member in members))  # of a spot or turn it stands last
    cancelled = 0
    for start in range(0, len(ids), PAGE):
        facts = of_each(client, ledger.facts, ids[start : start + PAGE])
        ours = [id for id, job in facts.items() if job is not None and job.batch == batch]
        cancelled += cancel(client, ledger, batch, ours)
    return cancelled
