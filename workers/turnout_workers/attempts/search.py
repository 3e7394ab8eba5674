"""The search for an endpoint that has room for a job: rank, ask admission for the best, wait in place or be parked."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from pydantic_core import to_json

from turnout.ledger import Claimed
from turnout.request import Lane
from turnout.result import JobStatus
from turnout_workers.attempts.ceilings import ConfiguredCeilings
from turnout_workers.attempts.closing import Closing
from turnout_workers.attempts.held import End, HeldJob, Moved, Skipped
from turnout_workers.attempts.judging import Judging, Room
from turnout_workers.attempts.parking import Parking, line_of
from turnout_workers.attempts.under_way import UnderWay
from turnout_workers.config.in_force import InForce
from turnout_workers.monitoring import tracing
from turnout_workers.monitoring.metrics import Metrics
from turnout_workers.routing.decision import Action, Candidate, Decision, rank
from turnout_workers.routing.estimate import amend
from turnout_workers.routing.options import headroom
from turnout_workers.routing.profile import JobProfile
from turnout_workers.routing.record import to_record
from turnout_workers.routing.tenants import TenantShares
from turnout_workers.state.snapshot import POLL_S, SnapshotPoller
from turnout_workers.state.store import Admission, Ask, Bid, Fence, FleetStore, Granted, NoRoom

PATIENCE_S = {Lane.INTERACTIVE: 1.0, Lane.STANDARD: 1.0, Lane.BATCH: 3.0}
"""How long a job waits in place, all waits together, before it is parked and its slot serves another. Where
others are parked, only one of each line."""
SPREAD = 0.2
"""Most that is added to a wait, as a share of it."""
RECHECK_S = 5.0
"""The longest deferral, doubled each time the job is parked again, though admission may name a later moment: calls that
use less than they have reserved make room earlier, and nobody knows when an operator or a new month's ceiling will."""
FRESH_S = 2 * POLL_S
"""After so long the snapshot shows what admission knew."""


@dataclass(slots=True)
class Search:
    """Where the search for an endpoint stands, while this worker holds the job."""

    patience_s: float
    """For how long it may still wait in place."""
    woken: bool
    """Brought from a line of parked jobs, because there is room, of which the snapshot may not know yet."""
    record: bytes = b""
    """Of the decision that found room, as JSON."""
    line: str = ""
    """Of all jobs that wait for the same, should this one have to."""
    again: str | None = None
    """The endpoint whose failed call is to be repeated there."""
    retries_here: int = 0
    refused_at: float = math.inf
    """When it was refused first, on a snapshot that proved stale: one from after that is believed."""

    @classmethod
    def of(cls, job: HeldJob) -> Search:
        return cls(PATIENCE_S[job.request.constraints.lane], woken=job.progress.deferrals > 0)


@dataclass(slots=True, kw_only=True)
class Searching:
    """Looks for room for any number of jobs at a time."""

    store: FleetStore
    fleet: SnapshotPoller
    ttl_s: float
    """Of a call's lease."""
    ceilings: ConfiguredCeilings
    judging: Judging
    closing: Closing
    parking: Parking
    under_way: UnderWay
    in_force: InForce
    metrics: Metrics
    rng: random.Random
    _last_seen: dict[Lane, float] = field(default_factory=dict, init=False)
    _shares: TenantShares = field(default_factory=TenantShares, init=False)

    def learn(self, claim: Claimed) -> None:
        """What a claim tells of other jobs: its lane and tenant have work, one has its turn now, some are parked."""
        self._last_seen[claim.lane] = now = self.fleet.now()
        self._shares.seen(claim.tenant or "", now)
        self.parking.any_parked = claim.any_parked
        if claim.next_in_turn is not None:
            self.parking.bring(claim.next_in_turn, claim.lane)

    async def __call__(self, job: HeldJob, search: Search) -> Room | End | None:
        """Look for an endpoint that has room, and wait in place if none has. None: look again."""
        now = self.fleet.now()
        if job.claim.deadline is not None and now >= job.claim.deadline:
            return await self.closing.give_up(job, JobStatus.EXPIRED, "deadline", "the deadline has passed")
        wish = self._wish(job)
        search.line = line_of(wish, job.progress.tried, job.claim.tenant, job.claim.batch)
        if not job.progress.deferrals and (left_s := self.parking.left_s(search.line, now)) > 0:
            return await self.closing.defer(job, left_s, line=search.line)
        decision = self._decide(job, wish, search, now)
        if (refusal := decision.refusal) is not None:
            return await self.closing.give_up(job, JobStatus.FAILED, "refused", str(refusal), _record(decision))
        if search.woken:
            decision, search.woken = decision.asking(), False
        if decision.action is Action.GO:
            return await self._ask(job, search, decision, now)
        return await self._wait(job, search, decision, decision.wait_s, now)

    async def _ask(self, job: HeldJob, search: Search, decision: Decision, now: float) -> Room | End | None:
        """Ask admission for one of the candidates; if none has room, wait."""
        candidates = decision.bids()
        same = [candidate for candidate in candidates if candidate.endpoint.id == search.again]
        with tracing.span("turnout.decide", **{"turnout.strategy": decision.strategy.value}) as span:
            admission = await self.admit(job, same or candidates)
            if span:
                span.set_attribute("turnout.excluded", len(decision.exclusions))
                span.set_attribute("turnout.endpoint", getattr(admission, "endpoint_id", ""))
        if isinstance(admission, Granted):
            self._shares.seen(job.claim.tenant or "", now, 1)
            return self._found(job, search, decision, candidates, admission)
        if not isinstance(admission, NoRoom):
            return Skipped("the lease was lost")
        search.again, search.retries_here = None, 0
        if same:  # it went out since the snapshot was taken: ask the others at once, instead of waiting for it
            return None
        # No moment is named if only an operator can make room, or a ceiling of another day or month.
        wait_s = math.inf if admission.retry_at is None else max(0.01, admission.retry_at - admission.at)
        if wait_s == math.inf and admission.ceiling and admission.ceiling.startswith(("job:", "batch:")):
            if self.parking.any_parked:  # those behind it in line wait for nothing else, so they end, too
                self.parking.wake(search.line, job.claim.lane, 2)
            return await self.closing.at_ceiling(job, admission.ceiling)
        if decision.at - decision.snapshot_age_s < search.refused_at and decision.leaves_out(candidates):
            # Since the snapshot was taken these went out: others may have room sooner.
            search.refused_at = min(search.refused_at, admission.at)
            wait_s = min(wait_s, FRESH_S)
        return await self._wait(job, search, decision, wait_s, now)

    def _found(
        self, job: HeldJob, search: Search, decision: Decision, offered: Sequence[Candidate], grant: Granted
    ) -> Room:
        room = self.judging.room(decision, offered, grant, alone=job.claim.stream)
        before, chosen = job.progress.attempts, room.chosen.endpoint
        if before and before[-1].provider != chosen.provider:
            self.metrics.moved(before[-1], chosen.provider)
        if search.again not in (None, chosen.id):  # by now another is better, or that one is out
            search.retries_here, job.progress = 0, job.progress.failed_over()
        search.record = _record(decision, chosen.id)
        self.wake_next(job, search)
        return room

    async def _wait(
        self, job: HeldJob, search: Search, decision: Decision, wait_s: float, now: float
    ) -> Moved | Skipped | None:
        """Wait in place as long as patience lasts, else park the job."""
        longest_s = RECHECK_S * 2 ** min(job.progress.deferrals, 5)
        # So that those that wait for the same moment don't come all at once.
        wait_s = min(wait_s, longest_s) * (1 + SPREAD * self.rng.random())
        in_place = search.line if self.parking.any_parked else ""
        if wait_s > search.patience_s or in_place in self.parking.in_place:
            self.parking.noted(search.line, now + wait_s, now)
            return await self.closing.defer(job, wait_s, _record(decision), line=search.line)
        search.patience_s -= wait_s
        with self.under_way.wait_for(decision.waits_for):
            await self.parking.wait_in_place(in_place, wait_s)
        return None

    def wake_next(self, job: HeldJob, search: Search) -> None:
        """Where this job has found room there may be more, and there is again once its call has ended."""
        if self.parking.any_parked:
            self.parking.wake(search.line, job.claim.lane, 1)

    def _wish(self, job: HeldJob) -> JobProfile:
        ceilings = self.ceilings.of_job(job.id, job.request, job.claim.batch)
        return job.progress.profile(
            job.request,
            accepted_at=job.claim.accepted_at,
            deadline=job.claim.deadline,
            priced=any(ceiling.limit_microusd is not None for ceiling in ceilings),
        )

    def _decide(self, job: HeldJob, wish: JobProfile, search: Search, now: float) -> Decision:
        return rank(
            wish,
            self.fleet.snapshot,
            now,
            self.rng,
            default_strategy=self.in_force.file.router.default_strategy,
            tried=job.progress.tried - {search.again},
        )

    async def admit(self, job: HeldJob, candidates: Sequence[Candidate], *, second: bool = False) -> Admission:
        bids = tuple(Bid.of(c, self.ceilings.of_provider(c.endpoint.provider)) for c in candidates)
        now, tenant = self.fleet.now(), job.claim.tenant or ""
        lane_share = headroom(job.claim.lane, self._last_seen, now, self.in_force.reserved)
        first = bids[0].endpoint_id
        amend(self.fleet.snapshot, first, lambda seen: seen.begun(now))  # so that jobs that come together spread
        admission = await self.store.admit(
            Ask(
                lease_id=f"{job.id}:{job.claim.token}:{len(job.progress.attempts) + second}",
                bids=bids,
                ttl_s=self.ttl_s,
                ceilings=self.ceilings.of_job(job.id, job.request, job.claim.batch),
                fence=Fence(job.id, job.claim.token),
                headroom=lane_share * self._shares.headroom(tenant, now),
            )
        )
        if isinstance(admission, Granted) and admission.endpoint_id != first:
            amend(self.fleet.snapshot, admission.endpoint_id, lambda seen: seen.begun(now))
        return admission


def _record(decision: Decision, called: str | None = None) -> bytes:
    return to_json(to_record(decision, called))
