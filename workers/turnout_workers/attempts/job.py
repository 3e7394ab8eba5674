"""A job on its way to an answer: how far it has come over its attempts, and how a worker's hold on it can end."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Literal, Self

from pydantic import TypeAdapter

from turnout.ledger import Claimed
from turnout.request import InferenceRequest, Lane
from turnout.result import Attempt, JobResult, JobStatus
from turnout_workers.background.heartbeat import Hold
from turnout_workers.routing.decision import Candidate
from turnout_workers.routing.failure import FailureKind
from turnout_workers.routing.profile import JobProfile
from turnout_workers.state.store import Ceiling

UNREAD = InferenceRequest(prompt="?")
"""In the place of a request that can't be read. No call is made for it."""
MAX_IN_PLACE_S = {Lane.INTERACTIVE: 1.0, Lane.STANDARD: 1.0, Lane.BATCH: 3.0}
"""How long a job waits in place, all waits together, before it is parked and its slot serves another. Where
others are parked, only one of each line."""
Elsewhere = Literal["failed_over", "deferred", "handed_back"]
"""How a job goes on: back to its lane, or parked."""


@dataclass(slots=True)
class Progress:
    """Carried from attempt to attempt, also to other workers, so that each knows what was tried: what the ledger keeps
    between one claim and the next."""

    attempts: tuple[Attempt, ...] = ()
    tried: frozenset[str] = frozenset()
    """Endpoint ids that failed this job in the current round."""
    unsuited: frozenset[str] = frozenset()
    """Endpoint ids that can't do this job: too small a context, a parameter they don't take."""
    spent_attempts: int = 0
    """Attempts that count, of which a job has only so many."""
    failovers: int = 0
    deferrals: int = 0
    waiting_since: float | None = None
    """Unix time at which it was parked first for want of room after its last call; None: it was not."""
    not_before: float = 0.0
    """Unix time: what a plain Celery app has asked for as `eta` or `countdown`."""

    @property
    def cost_microusd(self) -> int:
        return sum(attempt.cost_microusd for attempt in self.attempts)

    @property
    def unsure_microusd(self) -> int:
        return sum(attempt.unsure_microusd for attempt in self.attempts)

    @property
    def failures(self) -> dict[str, int]:
        """By endpoint id, over all rounds."""
        failed = (one for one in self.attempts if not one.succeeded and one.failure != FailureKind.CANCELLED)
        return Counter(attempt.endpoint for attempt in failed)

    def note(self, attempt: Attempt, *, spends: bool, unsuited: bool) -> None:
        """A call that ended by itself. `spends`: it was an attempt that counts. `unsuited`: see the field."""
        here = {attempt.endpoint}
        self.attempts += (attempt,)
        self.tried |= here
        if unsuited:
            self.unsuited |= here
        self.spent_attempts += spends
        self.waiting_since = None

    def defer(self, now: float, new_round: bool = False, for_room: bool = True) -> None:
        """It is parked. In a new round every endpoint may be tried again.

        for_room: else for money, or for somebody's word, by which it doesn't become worth more to be served soon.
        """
        if new_round:
            self.tried = frozenset()
        if for_room:
            self.waiting_since = self.waiting_since or now
        self.deferrals += 1

    def to_json(self) -> str:
        return _stored().dump_json(self, exclude_none=True).decode()

    @classmethod
    def from_json(cls, text: str) -> Progress:
        return _stored().validate_json(text) if text else cls()


@cache
def _stored() -> TypeAdapter[Progress]:
    return TypeAdapter(Progress)


@dataclass(slots=True)
class Job:
    """A request on its way to an answer: one that a worker holds, or one of the router in process."""

    id: str
    request: InferenceRequest
    deadline: float | None
    progress: Progress
    pinned: str | None = field(default=None, kw_only=True)
    """The one endpoint that may be called."""
    again: str | None = field(default=None, init=False)
    """The endpoint whose failed call is to be repeated there."""
    retries_here: int = field(default=0, init=False)

    def profile(self, priced: bool = False) -> JobProfile:
        """The job as the router sees it by now; see `JobProfile.of`."""
        progress, pinned = self.progress, self.pinned
        if progress.attempts and not self.request.constraints.allow_fallback:
            pinned = progress.attempts[0].endpoint
        return JobProfile.of(
            self.request,
            deadline=self.deadline,
            spent_microusd=progress.cost_microusd + progress.unsure_microusd,
            failures=progress.failures,
            waiting_since=progress.waiting_since,
            unsuited=progress.unsuited,
            pinned=pinned,
            priced=priced,
        )

    @property
    def tried(self) -> frozenset[str]:
        """What is not to be called while another endpoint is left."""
        return self.progress.tried - {self.again}

    def repeated(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Of these candidates the one whose failed call is to be repeated, if there is one."""
        return [candidate for candidate in candidates if candidate.endpoint.id == self.again]

    def repeat(self, endpoint_id: str | None) -> None:
        """Repeat the failed call to this endpoint. None: repeat no call, wherever the next one goes."""
        self.again, self.retries_here = endpoint_id, self.retries_here + 1 if endpoint_id else 0


@dataclass(slots=True)
class HeldJob(Job):
    """One claimed job, how far it has come by now, and where its search for an endpoint stands."""

    claim: Claimed
    hold: Hold
    in_place_left_s: float
    """For how long it may still wait in place."""
    woken: bool
    """Brought from a line of parked jobs, because there is room, of which the snapshot may not know yet."""
    record: bytes | None = field(default=None, init=False)
    """Of the last decision here, as JSON. None: there was none, for others wait for the same already, say."""
    ceilings: tuple[Ceiling, ...] = field(default=(), init=False)
    """On what it may cost, but for the provider's, as of its last search here."""
    line: str = field(default="", init=False)
    """Of all jobs that wait for the same, should this one have to."""
    over_ceiling: dict[str, str] = field(default_factory=dict, init=False)
    """Endpoints that have been refused for money, and whose ceilings leave too little."""
    refused_at: float = field(default=math.inf, init=False)
    """When it was refused first, on a snapshot that proved stale: one from after that is believed."""

    @classmethod
    def of(cls, claim: Claimed, hold: Hold) -> Self:
        request = claim.request if isinstance(claim.request, InferenceRequest) else UNREAD
        progress = Progress.from_json(claim.progress)
        in_place_left_s, woken = MAX_IN_PLACE_S[claim.lane], progress.deferrals > 0
        return cls(hold.job_id, request, claim.deadline, progress, claim, hold, in_place_left_s, woken)


@dataclass(frozen=True, slots=True)
class End:
    """How this worker's hold on a job has ended."""

    how: JobStatus | Elsewhere | Literal["skipped"]
    """Skipped: there is nothing to do here, for it is done already, somebody else's, or no longer ours."""
    note: str
    """What people want to know of it."""
    result: JobResult | None = None
    """Of a job that is settled now."""
