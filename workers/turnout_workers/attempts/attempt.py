"""One attempt at a job: claim → rank → admit → call → settle, or move on. No Celery, no HTTP, no Lua here.

Each step is somebody else's: the ledger knows the job, `routing/` decides, the store grants, `calling.py` calls,
`closing.py` writes the end. What is here is their order, and what becomes of the job when any of them says no.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from pydantic import ValidationError
from pydantic_core import to_json

from turnout.errors import Unreadable
from turnout.ledger import Claimed, Coalescer, Ledger
from turnout.request import InferenceRequest, Lane
from turnout.result import Attempt, JobStatus
from turnout.validation import explain
from turnout_workers.attempts.calling import Calling
from turnout_workers.attempts.ceilings import ConfiguredCeilings
from turnout_workers.attempts.closing import Closing
from turnout_workers.attempts.held import End, HeldJob, Moved, Skipped, outcome
from turnout_workers.attempts.judging import Judged, Judging, Room
from turnout_workers.attempts.parking import Parking, line_of
from turnout_workers.attempts.progress import Progress
from turnout_workers.attempts.reporting import Finished, Reporter
from turnout_workers.background.heartbeat import Heartbeat
from turnout_workers.background.spool import Spool
from turnout_workers.config.in_force import InForce
from turnout_workers.crash_points import reached
from turnout_workers.monitoring import logs, tracing
from turnout_workers.monitoring.metrics import Metrics
from turnout_workers.providers.base import current_job
from turnout_workers.routing.decision import Action, Candidate, Decision, Hedge, rank
from turnout_workers.routing.estimate import amend
from turnout_workers.routing.failover import Next
from turnout_workers.routing.options import headroom
from turnout_workers.routing.profile import JobProfile
from turnout_workers.routing.record import to_record
from turnout_workers.routing.tenants import TenantShares
from turnout_workers.state.snapshot import POLL_S, SnapshotPoller
from turnout_workers.state.store import Admission, Ask, Bid, Fence, FleetStore, Granted, NoRoom

logger = logging.getLogger(__name__)

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


class Attempts:
    """Makes attempts at jobs, any number at a time."""

    def __init__(
        self,
        *,
        owner: str,
        ledger: Ledger,
        call: Coalescer,
        store: FleetStore,
        fleet: SnapshotPoller,
        heartbeat: Heartbeat,
        ceilings: ConfiguredCeilings,
        spool: Spool,
        in_force: InForce,
        metrics: Metrics,
        rng: random.Random,
    ) -> None:
        self._owner = owner
        self._ledger = ledger
        self._call = call
        self._store = store
        self._fleet = fleet
        self._heartbeat = heartbeat
        self._ceilings = ceilings
        self._in_force = in_force
        self._rng = rng
        self._metrics = metrics
        self._reporter = Reporter(store, fleet, in_force.file.router.failover_cooldown, rng, metrics)
        self._calling = Calling(ledger=ledger, call=call, fleet=fleet, reporter=self._reporter, in_force=in_force)
        self._closing = Closing(
            ledger=ledger, call=call, store=store, fleet=fleet, ceilings=ceilings, spool=spool, in_force=in_force
        )
        self.parking = Parking(ledger, call)
        self._judging = Judging(self._reporter, rng, in_force.file.router.hedge)
        self._last_seen: dict[Lane, float] = {}
        self._shares = TenantShares()
        self.under_way = self._calling.under_way

    async def __call__(self, job_id: str, not_before: float = 0.0) -> End:
        """Claim the job and take it as far as it goes now: until `not_before`, Unix time, it is parked."""
        current_job.set(job_id)
        claimed_at = asyncio.get_running_loop().time()
        claim = await self._call.whole(self._ledger.claim(job_id, self._owner, self._heartbeat.ttl_s))
        if not isinstance(claim, Claimed):
            if claim.state == "unknown_version":
                logger.error("job %s has a record of a version unknown here; it is left untouched", job_id)
            if claim.state == "unknown_key":
                logger.error(
                    "job %s is left queued: %s", job_id, Unreadable("its request", claim.key, self._ledger.keyring.refs)
                )
            return Skipped(f"not to be claimed: {claim.state}")
        self._last_seen[claim.lane] = now = self._fleet.now()
        self._shares.seen(claim.tenant or "", now)
        self.parking.any_parked = claim.any_parked
        if claim.next_in_turn is not None:
            self.parking.bring(claim.next_in_turn, claim.lane)
        reached("claimed")
        if not claim.progress:
            self._metrics.claimed(claim.lane, self._fleet.now() - claim.accepted_at)
        with self._heartbeat.holding(job_id, claim.token, claimed_at) as hold:
            if not isinstance(request := claim.request, InferenceRequest):
                why = explain(request) if isinstance(request, ValidationError) else str(request)
                return await self._closing.unreadable(hold, claim, why)
            job = HeldJob(job_id, claim, request, hold, Progress.from_json(claim.progress))
            with tracing.holding(job) as span:
                end = await self._work(job, not_before)
                if span:
                    span.set_attribute("turnout.outcome", outcome(end))
                logger.info("%s: %s", outcome(end), end)
        self._metrics.ended(claim.lane, outcome(end))
        return end

    async def _stopped(self, job: HeldJob) -> End:
        """What becomes of a job that was cancelled where it waited: for a provider, for room, or to repeat a call."""
        if job.hold.lost:
            self._metrics.lease_lost()
            return Skipped("the lease was lost")
        return await self._closing.hand_back(job)  # a graceful stop

    async def _work(self, job: HeldJob, not_before: float) -> End:
        if not_before > job.progress.not_before:
            job.progress = replace(job.progress, not_before=not_before)
        known = self._in_force.settings.webhooks
        if (webhook := job.claim.webhook) and webhook not in known:
            message = f"no webhook is called {webhook}; there are {', '.join(sorted(known)) or 'none'}"
            return await self._closing.give_up(job, JobStatus.FAILED, "refused", message)
        if (early_s := job.progress.not_before - self._fleet.now()) > 0:
            return await self._closing.put_off(job, early_s)
        search = _Search(PATIENCE_S[job.request.constraints.lane], woken=job.progress.deferrals > 0)
        try:
            while True:
                found = await self._look(job, search)
                if isinstance(found, Room):
                    # Thousands wait here at a time: so no frame, and no partial, that a lone call can do without.
                    stopped: list[Attempt] = []
                    if found.hedge is None:
                        calls = [await self._begin(job, stopped, found.chosen, found.grant)]
                    else:
                        calls = await self._race(job, stopped, found, found.hedge)
                    judged = self._judging(found, job.request, job.progress, calls, stopped, search.retries_here)
                    found = await self._follow(job, search, judged)
                if found is not None:
                    return found
        except asyncio.CancelledError:
            return await self._stopped(job)

    async def _look(self, job: HeldJob, search: _Search) -> Room | End | None:
        """Look for an endpoint that has room, and wait in place if none has. None: look again."""
        now = self._fleet.now()
        if job.claim.deadline is not None and now >= job.claim.deadline:
            late = "the deadline has passed"
            return await self._closing.give_up(job, JobStatus.EXPIRED, "deadline", late)
        wish = self._wish(job)
        search.line = line_of(wish, job.progress.tried, job.claim.tenant, job.claim.batch)
        if not job.progress.deferrals and (left_s := self.parking.left_s(search.line, now)) > 0:
            return await self._closing.defer(job, left_s, line=search.line)
        decision = self._decide(job, wish, search, now)
        if (refusal := decision.refusal) is not None:
            why, record = str(refusal), _record(decision)
            return await self._closing.give_up(job, JobStatus.FAILED, "refused", why, record)
        if search.woken:
            decision, search.woken = decision.asking(), False
        wait_s = decision.wait_s
        if decision.action is Action.GO:
            found = await self._ask(job, search, decision, now)
            if not isinstance(found, float):
                return found
            wait_s = found
        return await self._wait(job, search, decision, wait_s, now) if wait_s > 0 else None

    async def _ask(self, job: HeldJob, search: _Search, decision: Decision, now: float) -> Room | End | float:
        """Ask admission for one of the candidates. A number: look again after so long."""
        candidates = decision.bids()
        same = [candidate for candidate in candidates if candidate.endpoint.id == search.again]
        with tracing.span("turnout.decide", **{"turnout.strategy": decision.strategy.value}) as span:
            admission = await self._admit(job, same or candidates)
            if span:
                span.set_attribute("turnout.excluded", len(decision.exclusions))
                span.set_attribute("turnout.endpoint", getattr(admission, "endpoint_id", ""))
        if isinstance(admission, Granted):
            self._shares.seen(job.claim.tenant or "", now, 1)
            room = self._judging.room(decision, candidates, admission, alone=job.claim.stream)
            before, chosen = job.progress.attempts, room.chosen.endpoint
            if before and before[-1].provider != chosen.provider:
                self._metrics.moved(before[-1], chosen.provider)
            if search.again not in (None, chosen.id):  # by now another is better, or that one is out
                search.retries_here, job.progress = 0, job.progress.failed_over()
            self._wake_next(job, search)
            search.record = _record(decision, chosen.id)
            return room
        if not isinstance(admission, NoRoom):
            return Skipped("the lease was lost")
        search.again, search.retries_here = None, 0
        if same:  # it went out since the snapshot was taken: ask the others at once, instead of waiting for it
            return 0.0
        # Without a moment an operator, or a ceiling of the next day or month, has to make room.
        wait_s = math.inf if admission.retry_at is None else max(0.01, admission.retry_at - admission.at)
        if wait_s == math.inf and admission.ceiling and admission.ceiling.startswith(("job:", "batch:")):
            if self.parking.any_parked:  # those behind it in line wait for nothing else, so they end, too
                self.parking.wake(search.line, job.claim.lane, 2)
            return await self._closing.at_ceiling(job, admission.ceiling)
        if decision.at - decision.snapshot_age_s < search.refused_at and decision.leaves_out(candidates):
            # Since the snapshot was taken these went out: others may have room sooner.
            search.refused_at = min(search.refused_at, admission.at)
            wait_s = min(wait_s, FRESH_S)
        return wait_s

    async def _wait(
        self, job: HeldJob, search: _Search, decision: Decision, wait_s: float, now: float
    ) -> Moved | Skipped | None:
        """Wait in place as long as patience lasts, else park the job."""
        longest_s = RECHECK_S * 2 ** min(job.progress.deferrals, 5)
        # Those that wait for the same moment shall not come all at once.
        wait_s = min(wait_s, longest_s) * (1 + SPREAD * self._rng.random())
        in_place = search.line if self.parking.any_parked else ""
        if wait_s > search.patience_s or in_place in self.parking.in_place:
            self.parking.noted(search.line, now + wait_s, now)
            return await self._closing.defer(job, wait_s, _record(decision), line=search.line)
        search.patience_s -= wait_s
        with self.under_way.wait_for(decision.waits_for):
            await self.parking.wait_in_place(in_place, wait_s)
        return None

    def _wake_next(self, job: HeldJob, search: _Search) -> None:
        """Where this job has found room there may be more, and there is again once its call has ended."""
        if self.parking.any_parked:
            self.parking.wake(search.line, job.claim.lane, 1)

    def _wish(self, job: HeldJob) -> JobProfile:
        ceilings = self._ceilings.of_job(job.id, job.request, job.claim.batch)
        return job.progress.profile(
            job.request,
            accepted_at=job.claim.accepted_at,
            deadline=job.claim.deadline,
            priced=any(ceiling.limit_microusd is not None for ceiling in ceilings),
        )

    def _decide(self, job: HeldJob, wish: JobProfile, search: _Search, now: float) -> Decision:
        tried = job.progress.tried
        return rank(
            wish,
            self._fleet.snapshot,
            now,
            self._rng,
            default_strategy=self._in_force.file.router.default_strategy,
            tried=tried - {search.again} if search.again else tried,
        )

    async def _admit(self, job: HeldJob, candidates: Sequence[Candidate], *, second: bool = False) -> Admission:
        bids = tuple(Bid.of(c, self._ceilings.of_provider(c.endpoint.provider)) for c in candidates)
        now, tenant = self._fleet.now(), job.claim.tenant or ""
        lane_share = headroom(job.claim.lane, self._last_seen, now, self._in_force.reserved)
        first = bids[0].endpoint_id
        amend(self._fleet.snapshot, first, lambda seen: seen.begun(now))  # jobs that come together spread
        admission = await self._store.admit(
            Ask(
                lease_id=f"{job.id}:{job.claim.token}:{len(job.progress.attempts) + second}",
                bids=bids,
                ttl_s=self._heartbeat.ttl_s,
                ceilings=self._ceilings.of_job(job.id, job.request, job.claim.batch),
                fence=Fence(job.id, job.claim.token),
                headroom=lane_share * self._shares.headroom(tenant, now),
            )
        )
        if isinstance(admission, Granted) and admission.endpoint_id != first:
            amend(self._fleet.snapshot, admission.endpoint_id, lambda seen: seen.begun(now))
        return admission

    async def _follow(self, job: HeldJob, search: _Search, judged: Judged) -> End | None:
        """Act on how the call went. None: look for an endpoint again."""
        again = judged.verdict.action is Next.RETRY
        job.progress = judged.progress
        end = None if again else await self._end(job, judged, search.record)
        await judged.told()
        self._wake_next(job, search)
        if again:
            search.again = judged.call.chosen.endpoint.id
            search.retries_here += 1
            await asyncio.sleep(judged.verdict.delay_s)
        return end

    async def _race(self, job: HeldJob, stopped: list[Attempt], room: Room, hedge: Hedge) -> list[Finished]:
        begin, admit = partial(self._begin, job, stopped), partial(self._admit, job, second=True)
        return await self._judging.hedging.race(hedge, begin(room.chosen, room.grant), admit, begin)

    def _begin(self, job: HeldJob, stopped: list[Attempt], chosen: Candidate, grant: Granted) -> Awaitable[Finished]:
        logs.at_attempt(grant.lease_id, chosen.endpoint.provider)
        return tracing.called(job, chosen, self._calling(job, chosen, grant, stopped))

    async def _end(self, job: HeldJob, judged: Judged, record: bytes) -> End:
        """What becomes of the job after its last call here."""
        verdict, call, closing = judged.verdict, judged.call, self._closing
        if call.failure is None:
            return await closing.succeed(job, call.response, record)
        match verdict.action:
            case Next.FAIL_OVER:
                job.progress = job.progress.failed_over()
                if verdict.delay_s > 0:
                    return await closing.defer(job, verdict.delay_s, record)
                return await closing.fail_over(job, record, call.attempt)
            case Next.DEFER:
                return await closing.defer(job, verdict.delay_s, record, new_round=True)
            case _:
                kind, message = call.failure.kind.value, call.failure.message
                return await closing.give_up(job, JobStatus.FAILED, kind, message, record)


def _record(decision: Decision, called: str | None = None) -> bytes:
    return to_json(to_record(decision, called))


@dataclass(slots=True)
class _Search:
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
