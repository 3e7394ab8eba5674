"""A result that can't be read: the end of its line, and of no other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from turnout.errors import Unreadable
from turnout.ledger import Call, Ledger
from turnout.result import JobResult, JobStatus

UNREADABLE = "unreadable"


def whatever_it_is(ledger: Ledger, id: str) -> Call[JobResult | None]:
    """Asks for a result; of one that can't be read, says why."""
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
