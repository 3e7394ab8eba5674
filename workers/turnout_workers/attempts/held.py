"""A job that this worker holds, and how its hold on it can end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from turnout.ledger import Claimed
from turnout.request import InferenceRequest
from turnout.result import JobResult
from turnout_workers.attempts.progress import Progress
from turnout_workers.background.heartbeat import Hold


@dataclass(slots=True)
class HeldJob:
    """One claimed job, and how far it has come by now."""

    id: str
    claim: Claimed
    request: InferenceRequest
    hold: Hold
    progress: Progress


@dataclass(frozen=True, slots=True)
class Done:
    """The job is settled."""

    result: JobResult

    def __str__(self) -> str:
        return self.result.summary()


@dataclass(frozen=True, slots=True)
class Moved:
    """The job went on elsewhere: back to its lane, or parked."""

    how: Literal["failed_over", "deferred", "handed_back"]
    note: str

    def __str__(self) -> str:
        return self.note


@dataclass(frozen=True, slots=True)
class Skipped:
    """Nothing to do here: done already, somebody else's, or no longer ours."""

    note: str

    def __str__(self) -> str:
        return self.note


End = Done | Moved | Skipped


def outcome(end: End) -> str:
    """One word for it."""
    match end:
        case Done(result):
            return result.status.value
        case Moved(how):
            return how
        case Skipped():
            return "skipped"
