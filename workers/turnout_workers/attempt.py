"""One attempt at a job: claim → rank → admit → call → settle, or move on. No Celery, no HTTP, no Lua here.

Each step is somebody else's: the ledger knows the job, `routing/` decides, the store grants, a connector calls.
What is here is their order, and what becomes of the job when any of them says no.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from redis.exceptions import RedisError, ResponseError

from turnout.ledger import Claimed, Ledger
from turnout.ledger.script import Coalescer
from turnout.request import InferenceRequest, InferenceResponse, Lane, RoutingStrategy
from turnout.result import Attempt, JobResult, JobStatus, Problem
from turnout_workers import crash_points
from turnout_workers.crash_points import reached
from turnout_workers.heartbeat import Heartbeat, Hold
from turnout_workers.hedging import Hedging
from turnout_workers.monitoring.metrics import Metrics
from turnout_workers.progress import Progress
from turnout_workers.providers.base import CallOutcome, CloudProviderBase, Timeouts, current_job
from turnout_workers.providers.errors import ProviderError
from turnout_workers.reporting import STOPPED, Finished, Reporter
from turnout_workers.routing import decision as routing
from turnout_workers.routing import failover
from turnout_workers.routing.failure import FailureKind
from turnout_workers.routing.options import headroom
from turnout_workers.routing.profile import JobProfile
from turnout_workers.routing.tenants import TenantShares
from turnout_workers.schema import off_schema
from turnout_workers.spool import Spool
from turnout_workers.state.snapshot import SnapshotPoller
from turnout_workers.state.store import (
    Admission,
    Ask,
    Bid,
    Ceiling,
    Fence,
    FleetStore,
    Granted,
    NoRoom,
)
from turnout_workers.streaming import Pieces
from turnout_workers.under_way import CallsUnderWay

logger = logging.getLogger(__name__)

PATIENCE_S = {Lane.INTERACTIVE: 1.0, Lane.STANDARD: 1.0, Lane.BATCH: 3.0}
"""How long a job waits in place, all waits together, before it is parked and its slot serves another."""
MAX_BIDS = 6
"""Candidates offered to one admission; those behind them are offered by the next one."""
SPREAD = 0.2
"""Most that is added to a wait, as a share of it."""
NEXT_PERIOD_S = 60.0
"""How often a job that waits for the next day or month of a ceiling looks again."""
RECHECK_S = 5.0
"""Deferral where nobody knows when there will be room."""


@dataclass(frozen=True, slots=True)
class Done:
    """The job is settled."""

    result: JobResult


@dataclass(frozen=True, slots=True)
class Moved:
    """The job went on elsewhere: back to its lane, or parked."""

    how: Literal["failed_over", "deferred", "handed_back"]
    note: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """Nothing to do here: done already, somebody else's, or no longer ours."""

    note: str


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


class Ceilings(Protocol):
    """The accounts that a job's cost counts against, and their ceilings."""

    def of_job(self, job_id: str, request: InferenceRequest, batch: str | None) -> tuple[Ceiling, ...]: ...

    def of_provider(self, provider: str) -> tuple[Ceiling, ...]: ...


@dataclass(frozen=True, slots=True)
class Policy:
    """What the operator has set."""

    default_strategy: RoutingStrategy = RoutingStrategy.BALANCED
    ejection_s: float = 2.0
    max_attempts: int = failover.MAX_ATTEMPTS
    result_ttl_s: float = 86_400.0
    failed_ttl_s: float = 7 * 86_400.0
    reserved: Mapping[Lane, float] | None = None
    """Share of each rate limit that a lane leaves to the more urgent ones, while they have work."""
    hedge: bool = False
    webhooks: frozenset[str] = frozenset()
    """Names that jobs may tell when they end."""
    """Whether a slow interactive call may be doubled."""


@dataclass(frozen=True, slots=True)
class _Job:
    """One claimed job."""

    id: str
    claim: Claimed
    request: InferenceRequest
    started_at: float


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
        connectors: Mapping[str, CloudProviderBase],
        heartbeat: Heartbeat,
        ceilings: Ceilings,
        spool: Spool,
        policy: Policy,
        metrics: Metrics,
        rng: random.Random,
    ) -> None:
        self._owner = owner
        self._ledger = ledger
        self._call = call
        self._store = store
        self._fleet = fleet
        self.connectors = connectors
        """By endpoint id. Replaced, like the policy, when the configuration changes."""
        self._heartbeat = heartbeat
        self._ceilings = ceilings
        self._spool = spool
        self.policy = policy
        self._rng = rng
        self._metrics = metrics
        self._reporter = Reporter(store, fleet, policy.ejection_s, rng, metrics)
        self._retries = failover.Allowance(ratio=0.1, reserve=10)
        self._hedging = Hedging(policy.hedge)
        self._last_seen: dict[Lane, float] = {}
        self._shares = TenantShares()
        self.under_way = CallsUnderWay()
        self.waiting: Counter[str] = Counter()
        """Jobs of this worker that wait for an endpoint rather than take another, by endpoint id."""

    async def __call__(self, job_id: str) -> End:
        """Claim the job and take it as far as it goes now."""
        current_job.set(job_id)
        loop = asyncio.get_running_loop()
        claimed_at = loop.time()
        claim = await self._call(self._ledger.claim(job_id, self._owner, self._heartbeat.ttl_s))
        if not isinstance(claim, Claimed):
            return Skipped(f"not to be claimed: {claim.state}")
        self._last_seen[claim.lane] = now = self._fleet.now()
        self._shares.seen(claim.tenant or "", now)
        if claim.next_in_turn is not None:
            await self._call(self._ledger.bring(claim.next_in_turn, claim.lane))
        reached("claimed")
        if not claim.progress:
            self._metrics.claimed(claim.lane, self._fleet.now() - claim.accepted_at)
        with self._heartbeat.holding(job_id, claim.token, claimed_at) as hold:
            end = await self._held(job_id, claim, hold)
        self._metrics.ended(claim.lane, outcome(end))
        logger.info("%s: %s", outcome(end), end.result.summary() if isinstance(end, Done) else end.note)
        return end

    async def _held(self, job_id: str, claim: Claimed, hold: Hold) -> End:
        try:
            request = InferenceRequest.model_validate_json(claim.payload)
            return await self._work(_Job(job_id, claim, request, self._fleet.now()), hold)
        except asyncio.CancelledError:
            if hold.lost:
                self._metrics.lease_lost()
                return Skipped("the lease was lost")
            # A graceful stop: the job goes back to its lane's front for another worker.
            await self._call(self._ledger.release(job_id, claim.token, claim.lane))
            return Moved("handed_back", "handed back")

    async def _work(self, job: _Job, hold: Hold) -> End:
        progress = Progress.from_json(job.claim.progress)
        if (webhook := job.claim.webhook) and webhook not in self.policy.webhooks:
            there_are = ", ".join(sorted(self.policy.webhooks)) or "none"
            message = f"no webhook is called {webhook}; there are {there_are}"
            return await self._give_up(job, progress, JobStatus.FAILED, "refused", message)
        patience_s = PATIENCE_S[job.request.constraints.lane]
        again: str | None = None
        retries_here = 0
        while True:
            now = self._fleet.now()
            if job.claim.deadline is not None and now >= job.claim.deadline:
                return await self._give_up(job, progress, JobStatus.EXPIRED, "deadline", "the deadline has passed")
            decision = self._decide(job, progress, now, again)
            if decision.action is routing.Action.REFUSE:
                reasons = "; ".join(f"{e.endpoint_id}: {e.text}" for e in decision.exclusions)
                message = f"no endpoint can serve this job ({reasons or 'none is configured'})"
                return await self._give_up(job, progress, JobStatus.FAILED, "refused", message, decision)
            wait_s = decision.wait_s
            if decision.action is routing.Action.GO:
                candidates = decision.bids(MAX_BIDS)
                same = [candidate for candidate in candidates if candidate.endpoint.id == again]
                admission = await self._admit(job, progress, same or candidates)
                if isinstance(admission, Granted):
                    self._shares.seen(job.claim.tenant or "", now, 1)
                    chosen = next(c for c in candidates if c.endpoint.id == admission.endpoint_id)
                    outcome = await self._attempt(job, progress, decision, chosen, admission, hold, retries_here)
                    if not isinstance(outcome, _Again):
                        return outcome
                    progress, again, retries_here = outcome.progress, outcome.endpoint_id, retries_here + 1
                    await asyncio.sleep(outcome.delay_s)
                    continue
                if not isinstance(admission, NoRoom):
                    return Skipped("the lease was lost")
                if admission.retry_at is not None:
                    wait_s = max(0.01, admission.retry_at - admission.at)
                elif admission.ceiling is None:
                    wait_s = RECHECK_S
                elif admission.ceiling.startswith(("job:", "batch:")):
                    return await self._at_ceiling(job, progress, admission.ceiling)
                else:
                    wait_s = NEXT_PERIOD_S  # a day's or month's ceiling: the next one has room
                again, retries_here = None, 0
            # Those that wait for the same moment shall not come all at once.
            wait_s *= 1 + SPREAD * self._rng.random()
            if wait_s > patience_s:
                return await self._defer(job, progress, wait_s, decision)
            patience_s -= wait_s
            with self._waits(decision.waits_for):
                await asyncio.sleep(wait_s)

    @contextlib.contextmanager
    def _waits(self, endpoint_id: str | None) -> Iterator[None]:
        if endpoint_id is None:
            yield
            return
        self.waiting[endpoint_id] += 1
        try:
            yield
        finally:
            self.waiting[endpoint_id] -= 1

    def _decide(self, job: _Job, progress: Progress, now: float, again: str | None) -> routing.Decision:
        wish = job.request.constraints
        ceilings = self._ceilings.of_job(job.id, job.request, job.claim.batch)
        profile = JobProfile.of(
            job.request,
            accepted_at=job.claim.accepted_at,
            deadline=job.claim.deadline,
            spent_microusd=progress.cost_microusd + progress.unsure_microusd,
            failures=progress.failures,
            excluded=progress.unsuited,
            priced=any(ceiling.limit_microusd is not None for ceiling in ceilings),
            pinned=None if wish.allow_fallback or not progress.attempts else progress.attempts[0].endpoint,
        )
        strategy = self.policy.default_strategy
        return routing.rank(
            profile, self._fleet.snapshot, now, self._rng, default_strategy=strategy, tried=progress.tried - {again}
        )

    async def _admit(
        self, job: _Job, progress: Progress, candidates: Sequence[routing.Candidate], *, second: bool = False
    ) -> Admission:
        bids = tuple(Bid.of(c, self._ceilings.of_provider(c.endpoint.provider)) for c in candidates)
        now, tenant = self._fleet.now(), job.claim.tenant or ""
        lane_share = headroom(job.claim.lane, self._last_seen, now, self.policy.reserved)
        return await self._store.admit(
            Ask(
                lease_id=f"{job.id}:{job.claim.token}:{len(progress.attempts) + second}",
                bids=bids,
                ttl_s=self._heartbeat.ttl_s,
                ceilings=self._ceilings.of_job(job.id, job.request, job.claim.batch),
                fence=Fence(self._ledger.keys.job(job.id), job.claim.token),
                headroom=lane_share * self._shares.headroom(tenant, now),
            )
        )

    async def _attempt(
        self,
        job: _Job,
        progress: Progress,
        decision: routing.Decision,
        chosen: routing.Candidate,
        grant: Granted,
        hold: Hold,
        retries_here: int,
    ) -> End | _Again:
        """Make the call that was granted, and act on how it went."""
        if progress.attempts and progress.attempts[-1].provider != chosen.endpoint.provider:
            self._metrics.moved(progress.attempts[-1], chosen.endpoint.provider)
        stopped: list[Attempt] = []
        self._retries.deposit()
        calls = await self._hedging.calls(
            decision,
            chosen,
            grant,
            admit=lambda others: self._admit(job, progress, others, second=True),
            call=lambda candidate, lease: self._leased(job, candidate, lease, hold, stopped),
            alone=job.claim.stream,
        )
        reached("after_call")
        progress = replace(progress, attempts=(*progress.attempts, *stopped))
        reporting = []
        for call in calls:
            verdict = failover.judge(
                call.failure,
                self._rng,
                attempt=progress.spent_attempts + 1,
                retries_here=retries_here,
                retry_budget_left=self._retries.left and decision.worth_repeating(call.chosen),
                has_untried=decision.has_untried(call.chosen.endpoint.id),
                allow_fallback=job.request.constraints.allow_fallback,
                max_attempts=self.policy.max_attempts,
            )
            reporting.append(asyncio.ensure_future(self._reporter.report(call, verdict)))
            progress = progress.after(call.attempt, spends=verdict.spends_attempt, unsuited=verdict.exclude)
        if call.failure is None:
            result = self._result(job, progress, JobStatus.SUCCEEDED, response=call.response)
            ended: End | _Again = await self._settle(job, result, decision)
        elif _unmended(job.request, progress):
            code, message = call.failure.kind.value, call.failure.message
            ended = await self._give_up(job, progress, JobStatus.FAILED, code, message, decision)
        else:
            ended = await self._move_on(job, progress, decision, verdict, call.attempt)
        await asyncio.gather(*reporting)
        return ended

    async def _leased(
        self, job: _Job, chosen: routing.Candidate, grant: Granted, hold: Hold, stopped: list[Attempt]
    ) -> Finished:
        """One leased call. If we are stopped, it is reported here, and added to `stopped`."""
        hold.leases.add(grant.lease_id)
        started_at, clock = self._fleet.now(), time.monotonic()
        try:
            outcome = await self._send(job, chosen, grant.lease_id, hold)
            wrong = off_schema(job.request, outcome.response)
            return Finished(
                grant.lease_id, chosen, started_at, time.monotonic() - clock, outcome, wrong, outcome.limits
            )
        except ProviderError as error:
            duration_s = time.monotonic() - clock
            return Finished(grant.lease_id, chosen, started_at, duration_s, None, error.failure, error.limits)
        except asyncio.CancelledError:
            call = Finished(grant.lease_id, chosen, started_at, time.monotonic() - clock, None, STOPPED)
            stopped.append(call.attempt)
            await self._reporter.report(call, failover.judge(STOPPED, self._rng))
            raise
        finally:
            hold.leases.discard(grant.lease_id)

    async def _send(self, job: _Job, chosen: routing.Candidate, lease_id: str, hold: Hold) -> CallOutcome:
        endpoint = chosen.endpoint
        if asyncio.get_running_loop().time() >= hold.valid_until:
            hold.lose()  # paused or cut off for longer than the lease: another worker may have the job
            await asyncio.sleep(0)
        longest_s = chosen.timeout_s
        if job.claim.deadline is not None:  # nobody wants the answer after it
            longest_s = min(longest_s, max(0.01, job.claim.deadline - self._fleet.now()))
        timeouts = Timeouts(first_byte_s=longest_s, idle_s=min(30.0, longest_s), total_s=longest_s)
        connector = self.connectors.get(endpoint.id)
        if connector is None:
            raise ProviderError.unsupported(f"{endpoint.id} is no longer configured")
        reached("before_call")
        if crash_points.awaited("during_call"):
            asyncio.get_running_loop().call_later(0.05, reached, "during_call")
        async with self.under_way.call(endpoint.id, chosen.overdue_s):
            if not job.claim.stream:
                return await connector.call(endpoint, job.request, timeouts)
            pieces = Pieces(self._ledger, self._call, job.id, lease_id, self.policy.result_ttl_s)
            await pieces.begin()
            outcome = await connector.call(endpoint, job.request, timeouts, pieces)
            await pieces.end(outcome.response.text)
            return outcome

    async def _move_on(
        self, job: _Job, progress: Progress, decision: routing.Decision, verdict: failover.Verdict, failed: Attempt
    ) -> End | _Again:
        match verdict.action:
            case failover.Action.RETRY:
                self._retries.withdraw()
                return _Again(progress, failed.endpoint, verdict.delay_s)
            case failover.Action.FAIL_OVER if verdict.delay_s <= 0:
                progress = progress.failed_over()
                event = {
                    "event": "failed_over",
                    "from": failed.endpoint,
                    "failure": failed.failure,
                    "decision": decision.to_record(),
                }
                claim = job.claim
                await self._call(self._ledger.fail_over(job.id, claim.token, claim.lane, progress.to_json(), event))
                return Moved("failed_over", f"{failed.endpoint} failed ({failed.failure}), over to another")
            case failover.Action.FAIL_OVER:
                return await self._defer(job, progress.failed_over(), verdict.delay_s, decision)
            case failover.Action.DEFER:
                return await self._defer(job, progress, verdict.delay_s, decision, new_round=True)
            case _:
                code, message = failed.failure or "failed", failed.message or "the call failed"
                return await self._give_up(job, progress, JobStatus.FAILED, code, message, decision)

    async def _defer(
        self, job: _Job, progress: Progress, wait_s: float, decision: routing.Decision, new_round: bool = False
    ) -> Moved:
        progress = progress.deferred(new_round)
        event = {"event": "deferred", "for_s": round(wait_s, 3), "decision": decision.to_record()}
        await self._call(self._ledger.defer(job.id, job.claim.token, wait_s, progress.to_json(), event))
        return Moved("deferred", f"deferred for {wait_s:.1f} s: nothing has room")

    async def _at_ceiling(self, job: _Job, progress: Progress, account: str) -> Done | Skipped:
        message = f"the cost ceiling of {account} is reached"
        status = JobStatus.EXPIRED if account.startswith("batch:") else JobStatus.FAILED
        return await self._give_up(job, progress, status, "cost_ceiling", message)

    async def _give_up(
        self,
        job: _Job,
        progress: Progress,
        status: JobStatus,
        code: str,
        message: str,
        decision: routing.Decision | None = None,
    ) -> Done | Skipped:
        problem = Problem(code=code, message=message, retryable=status is JobStatus.FAILED and code != "refused")
        return await self._settle(job, self._result(job, progress, status, problem=problem), decision)

    async def _settle(self, job: _Job, result: JobResult, decision: routing.Decision | None) -> Done | Skipped:
        """Write the end of the job; on disk if Redis is away, for what it says has been paid for."""
        record = decision.to_record() if decision else None
        policy, claim = self.policy, job.claim
        settlement = self._ledger.settle(
            job.id, claim.token, result, record, policy.result_ttl_s, claim.batch, policy.failed_ttl_s
        )
        try:
            taken = await self._call(settlement)
        except ResponseError:
            raise  # Redis has answered, and refused: a fault of ours that no waiting mends
        except (RedisError, OSError) as error:
            logger.warning("job %s can't be settled now (%s); its result waits on disk", job.id, error)
            self._spool.keep(
                {
                    "job": job.id,
                    "token": claim.token,
                    "batch": claim.batch,
                    "result": result.model_dump(mode="json"),
                }
            )
            return Skipped("its result waits on disk")
        if not taken.accepted:
            if taken.duplicate and result.cost_microusd:
                await self._store.mark_duplicate(
                    [c.account for c in self._ceilings.of_job(job.id, job.request, job.claim.batch)],
                    result.attempts[-1].cost_microusd,
                )
            return Skipped(f"settled by another: {taken}")
        reached("after_settle")
        if job.request.constraints.max_cost_microusd is not None:
            await self._store.forget([f"job:{job.id}"])
        return Done(result)

    def _result(
        self,
        job: _Job,
        progress: Progress,
        status: JobStatus,
        *,
        response: InferenceResponse | None = None,
        problem: Problem | None = None,
    ) -> JobResult:
        return JobResult(
            id=job.id,
            status=status,
            response=response,
            error=problem,
            attempts=progress.attempts,
            failovers=progress.failovers,
            deferrals=progress.deferrals,
            accepted_at=job.claim.accepted_at,
            started_at=progress.attempts[0].started_at if progress.attempts else None,
            settled_at=self._fleet.now(),
            cost_microusd=progress.cost_microusd,
            unsure_microusd=progress.unsure_microusd,
        )


def _unmended(request: InferenceRequest, progress: Progress) -> bool:
    """Whether the answers have failed their schema once more than may be asked for again."""
    failed = sum(attempt.failure == FailureKind.OFF_SCHEMA for attempt in progress.attempts)
    return failed > request.response_format.max_repairs


@dataclass(frozen=True, slots=True)
class _Again:
    """Call the same endpoint again after a moment."""

    progress: Progress
    endpoint_id: str
    delay_s: float
