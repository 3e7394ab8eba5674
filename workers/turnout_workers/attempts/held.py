"""A job that this worker holds, and how its hold on it can end."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Self

from turnout.ledger import Claimed
from turnout.request import InferenceRequest, Lane
from turnout.result import JobResult
from turnout_workers.attempts.progress import Job, Progress
from turnout_workers.background.heartbeat import Hold

UNREAD = InferenceRequest(prompt="?")
"""In the place of a request that can't be read. No call is made for it."""
PATIENCE_S = {Lane.INTERACTIVE: 1.0, Lane.STANDARD: 1.0, Lane.BATCH: 3.0}
"""How long a job waits in place, all waits together, before it is parked and its slot serves another. Where
others are parked, only one of each line."""


@dataclass(slots=True)
class HeldJob(Job):
    """One claimed job, how far it has come by now, and where its search for an endpoint stands."""

    claim: Claimed
    hold: Hold
    patience_s: float
    """For how long it may still wait in place."""
    woken: bool
    """Brought from a line of parked jobs, because there is room, of which the snapshot may not know yet."""
    record: bytes | None = field(default=None, init=False)
    """Of the last decision here, as JSON. None: there was none, for others wait for the same already, say."""
    line: str = field(default="", init=False)
    """Of all jobs that wait for the same, should this one have to."""
    above: dict[str, str] = field(default_factory=dict, init=False)
    """Endpoints that have been refused for money, and whose ceilings leave too little."""
    refused_at: float = field(default=math.inf, init=False)
    """When it was refused first, on a snapshot that proved stale: one from after that is believed."""

    @classmethod
    def of(cls, claim: Claimed, hold: Hold) -> Self:
        request = claim.request if isinstance(claim.request, InferenceRequest) else UNREAD
        progress = Progress.from_json(claim.progress)
        patience_s, woken = PATIENCE_S[claim.lane], progress.deferrals > 0
        return cls(hold.job_id, request, claim.deadline, progress, claim, hold, patience_s, woken)


@dataclass(frozen=True, slots=True)
class Done:
    """The job is settled."""

    result: JobResult

    @property
    def how(self) -> str:
        return self.result.status.value

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
    how: ClassVar[str] = "skipped"

    def __str__(self) -> str:
        return self.note


End = Done | Moved | Skipped
"""Each tells in one word how it ended, and as a string what people want to know of it."""
