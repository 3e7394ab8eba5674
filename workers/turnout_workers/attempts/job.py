"""A job on its way to an answer: its progress over its attempts, and how a worker's hold on it can end."""

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

UNREADABLE_REQUEST = InferenceRequest(prompt="?")
"""Stands for a request that can't be read. No call is made for it."""
MAX_IN_PLACE_S = {Lane.INTERACTIVE: 1.0, Lane.STANDARD: 1.0, Lane.BATCH: 3.0}
"""How long a job waits in place, all waits together, before it is parked and frees its slot. While jobs are parked,
only one of each wait group may wait in place."""
MovedOn = Literal["failed_over", "deferred", "handed_back"]
"""How a job goes on without ending: back in its lane, or parked."""


@dataclass(slots=True)
class Progress:
    """What the ledger keeps of a job from one claim to the next, so that each worker knows what was tried."""

    attempts: tuple[Attempt, ...] = ()
    tried: frozenset[str] = frozenset()
    """Endpoint ids that failed this job in the current round."""
    unsuited: frozenset[str] = frozenset()
    """Ids of endpoints that can't do this job, with too small a context, for example."""
    spent_attempts: int = 0
    """Attempts that count against `MAX_ATTEMPTS`."""
    failovers: int = 0
    deferrals: int = 0
    waiting_since: float | None = None
    """Unix time at which it was first parked for lack of room after its last call; None: it wasn't."""
    not_before: float = 0.0
    """Unix time: the `eta` or `countdown` of a plain Celery app."""

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
        """Note a call that ended by itself. spends: it counts as an attempt. unsuited: see the field."""
        here = {attempt.endpoint}
        self.attempts += (attempt,)
        self.tried |= here
        if unsuited:
            self.unsuited |= here
        self.spent_attempts += spends
        self.waiting_since = None

    def park(self, now: float, new_round: bool = False, for_room: bool = True) -> None:
        """Note that the job is parked. new_round: every endpoint may be tried again.

        for_room: it waits for room. Waiting for money or an operator doesn't make it more urgent.
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
    """A request on its way to an answer, held by a worker or by the router in process."""

    id: str
    request: InferenceRequest
    deadline: float | None
    progress: Progress
    pinned: str | None = field(default=None, kw_only=True)
    """The one endpoint that may be called."""
    retry_endpoint: str | None = field(default=None, init=False)
    """The endpoint whose failed call is to be retried."""
    retries_here: int = field(default=0, init=False)

    def profile(self, priced: bool = False) -> JobProfile:
        """The job as the router sees it now, see `JobProfile.of`."""
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
        """Endpoints that aren't called while another one is left."""
        return self.progress.tried - {self.retry_endpoint}

    def only_retry(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """The candidate to retry, alone; empty if it isn't among these."""
        return [candidate for candidate in candidates if candidate.endpoint.id == self.retry_endpoint]

    def set_retry(self, endpoint_id: str | None) -> None:
        """Retry the failed call to this endpoint. None: the next call isn't a retry, wherever it goes."""
        self.retry_endpoint, self.retries_here = endpoint_id, self.retries_here + 1 if endpoint_id else 0


@dataclass(slots=True)
class HeldJob(Job):
    """A claimed job, with the state of its search for an endpoint."""

    claim: Claimed
    hold: Hold
    in_place_left_s: float
    """How long it may still wait in place."""
    woken: bool
    """It was parked and woken, because there is room that the snapshot may not show yet."""
    decision_json: bytes | None = field(default=None, init=False)
    """The last decision here. None: there was none, for example because others already wait for the same."""
    ceilings: tuple[Ceiling, ...] = field(default=(), init=False)
    """All but the provider's, as of its last search here."""
    wait_group: str = field(default="", init=False)
    """The group of jobs that wait for the same, if this one has to wait."""
    over_ceiling: dict[str, str] = field(default_factory=dict, init=False)
    """Endpoints refused for money, and the accounts whose ceilings leave too little."""
    refused_at: float = field(default=math.inf, init=False)
    """When it was first refused because of a stale snapshot: a later snapshot is trusted."""

    @classmethod
    def of(cls, claim: Claimed, hold: Hold) -> Self:
        request = claim.request if isinstance(claim.request, InferenceRequest) else UNREADABLE_REQUEST
        progress = Progress.from_json(claim.progress)
        in_place_left_s, woken = MAX_IN_PLACE_S[claim.lane], progress.deferrals > 0
        return cls(hold.job_id, request, claim.deadline, progress, claim, hold, in_place_left_s, woken)


@dataclass(frozen=True, slots=True)
class End:
    """How this worker's hold on a job ended."""

    how: JobStatus | MovedOn | Literal["skipped"]
    """Skipped: there is nothing to do here, because the job is done, another worker's, or no longer ours."""
    note: str
    """The reason, for people."""
    result: JobResult | None = None
    """Set if the job is settled."""
