"""IntelligentRouter: the whole routing core in one process, for a program that wants no queue and no Redis.

    router = IntelligentRouter()
    router.register_provider(groq, priority=1)
    router.register_provider(gemini, priority=2, cost_per_1k_tokens=0.0004)
    async with router:
        response = await router.complete(request)

It takes the same decisions as a fleet of workers, over a store in memory; give it a shared `store` and several
processes share limits, money and health.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

from turnout.request import InferenceRequest, InferenceResponse, Lane, RoutingStrategy
from turnout_workers.routing.decision import Action, Candidate, Decision, rank
from turnout_workers.routing.failover import Action as Next
from turnout_workers.routing.failover import Allowance, Verdict, judge
from turnout_workers.routing.failure import Billed, Failure, FailureKind, Scope
from turnout_workers.routing.fleet import Endpoint, Fleet, Price, Snapshot
from turnout_workers.routing.health import EJECTION_S, HealthAction, Step, after_report, after_watch
from turnout_workers.routing.options import headroom
from turnout_workers.routing.profile import JobProfile
from turnout_workers.state.memory import MemoryFleetStore
from turnout_workers.state.store import Ask, Bid, FleetStore, Granted, NoRoom, Report

WATCH_S = 0.5
"""How often calls in flight are looked at for hanging."""
DISABLED_RECHECK_S = 300.0
"""A disabled endpoint is given one more chance this often, while its provider's health check succeeds."""
HEDGES = 0.03
"""The most second calls per first one, where hedging is on."""
BIDS = 8
"""The most candidates that one admission considers."""
LEASE_MARGIN_S = 30.0
ROOM_RECHECK_S = 0.05


class Provider(Protocol):
    """What is registered: `providers.base.CloudProviderBase`, or anything of its shape."""

    name: str
    endpoints: tuple[Endpoint, ...]

    async def call(self, endpoint: Endpoint, request: InferenceRequest) -> Any:
        """Make one call: an object with `response` and `limits`. An error carries a `failure: Failure`."""

    async def check_health(self) -> None: ...

    async def aclose(self) -> None: ...


@runtime_checkable
class _Failed(Protocol):
    """An error that says what it means to the router, such as `providers.errors.ProviderError`."""

    failure: Failure


def _failure_of(error: BaseException) -> Failure:
    if isinstance(error, _Failed):
        return error.failure
    if isinstance(error, TimeoutError):
        return Failure(FailureKind.TIMED_OUT, "no answer within the call's deadline", Billed.MAYBE)
    if isinstance(error, Exception):
        return Failure(FailureKind.LOCAL, type(error).__name__)
    return Failure(FailureKind.CANCELLED, "cancelled by the caller", Billed.MAYBE)


class DeadlinePassed(TimeoutError):
    """The request was not answered by its deadline."""


@dataclass(slots=True)
class _Job:
    """What one request has been through."""

    request: InferenceRequest
    accepted_at: float
    strategy: RoutingStrategy | None
    failures: dict[str, int] = field(default_factory=dict)
    tried: frozenset[str] = frozenset()
    excluded: frozenset[str] = frozenset()
    spent_microusd: int = 0
    attempts: int = 0
    """Those that count; the one being made included."""
    history: list[str] = field(default_factory=list)

    def profile(self) -> JobProfile:
        profile = JobProfile.of(
            self.request,
            accepted_at=self.accepted_at,
            spent_microusd=self.spent_microusd,
            failures=self.failures,
            excluded=self.excluded,
        )
        return replace(profile, strategy=self.strategy or profile.strategy)


@dataclass(frozen=True, slots=True)
class RoutedProvider:
    """The provider that was chosen for a request. `complete` calls the chosen endpoint, and no other."""

    name: str
    endpoint: Endpoint
    decision: Decision
    _router: IntelligentRouter = field(repr=False)

    async def complete(self, request: InferenceRequest) -> InferenceResponse:
        """Call this provider once there is room. Raises the provider's own error if the call fails."""
        wish = request.constraints.model_copy(update={"only": (self.name,), "allow_fallback": False})
        pinned = request.model_copy(update={"model": self.endpoint.model, "constraints": wish})
        return await self._router.complete(pinned)


class IntelligentRouter:
    """Routes requests to the optimal provider by availability, latency, cost and health."""

    def __init__(
        self,
        default_strategy: RoutingStrategy = RoutingStrategy.BALANCED,
        health_check_interval: float = 30.0,
        failover_cooldown: float = EJECTION_S,
        store: FleetStore | None = None,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        hedge: bool = False,
    ) -> None:
        """health_check_interval: seconds between asking each provider's free health endpoint.

        failover_cooldown: seconds of the first ejection of a failing endpoint, doubled by each further one.
        store: what is shared with other processes; None: a store in memory, on `clock` (Unix seconds).
        hedge: whether an interactive request that is slow may be sent to a second provider as well.
        """
        self._default_strategy = default_strategy
        self._interval_s = health_check_interval
        self._base_s = failover_cooldown
        self._store = store or MemoryFleetStore(clock)
        self._rng = rng or random.Random()
        self._sleep = sleep
        self._providers: dict[str, Provider] = {}
        self._owner: dict[str, Provider] = {}
        self._fleet = Fleet(())
        self._turn = 0
        self._last_seen: dict[Lane, float] = {}
        self._retries = Allowance(0.2, reserve=10)
        self._hedge, self._hedges = hedge, Allowance(HEDGES, reserve=1)
        self._disabled_since: dict[str, float] = {}
        self._tasks: list[asyncio.Task[None]] = []

    # --- the fleet ---------------------------------------------------------------------------------------

    def register_provider(
        self,
        connector: Provider,
        priority: int | None = None,
        cost_per_1k_tokens: float | None = None,
        weight: float | None = None,
    ) -> None:
        """Offer a provider's endpoints to requests. What is None stays as the connector has it.

        cost_per_1k_tokens: US dollars, for input and output alike.
        """
        if connector.name in self._providers:
            raise ValueError(f"provider {connector.name!r} is registered already; unregister it first")
        changes: dict[str, Any] = {}
        if priority is not None:
            changes["priority"] = priority
        if weight is not None:
            changes["weight"] = weight
        if cost_per_1k_tokens is not None:
            changes["price"] = Price(cost_per_1k_tokens * 1000, cost_per_1k_tokens * 1000)
        endpoints = [replace(endpoint, **changes) for endpoint in connector.endpoints]
        self._fleet = Fleet((*self._fleet.endpoints, *endpoints))
        self._providers[connector.name] = connector
        self._owner.update((endpoint.id, connector) for endpoint in endpoints)

    def unregister_provider(self, name: str) -> None:
        """Send it no further requests; calls in flight end as they will. KeyError if there is none."""
        connector = self._providers.pop(name)
        gone = {id for id, owner in self._owner.items() if owner is connector}
        self._fleet = Fleet(endpoint for endpoint in self._fleet.endpoints if endpoint.id not in gone)
        for id in gone:
            del self._owner[id]

    async def isolate(self, name: str, reason: str = "by an operator") -> None:
        """Take a provider, or one endpoint, out until `restore`."""
        await self._store.isolate(self._ids(name), reason)

    async def restore(self, name: str) -> None:
        """Undo isolation, disabling, ejection and cooldown of a provider or an endpoint."""
        await self._store.restore(self._ids(name))

    async def snapshot(self) -> Snapshot:
        """The fleet as it is now: health, metrics and load of every endpoint."""
        at, states = await self._store.state()
        return self._fleet.snapshot(at, states)

    def _ids(self, name: str) -> list[str]:
        ids = [endpoint.id for endpoint in self._fleet.endpoints if name in (endpoint.provider, endpoint.id)]
        if not ids:
            raise KeyError(f"no provider or endpoint is called {name!r}; there are {', '.join(self._fleet.ids)}")
        return ids

    # --- requests ----------------------------------------------------------------------------------------

    async def get_provider_for_request(
        self, request: InferenceRequest, strategy: RoutingStrategy | None = None
    ) -> RoutedProvider:
        """The best provider for a request, once one may be called.

        Raises NoEligibleEndpoint if none ever can, DeadlinePassed at the request's deadline.
        """
        decision = await self._decide(await self._accepted(request, strategy))
        best = decision.top(1)[0]
        return RoutedProvider(self._owner[best.endpoint.id].name, best.endpoint, decision, self)

    async def complete(self, request: InferenceRequest, strategy: RoutingStrategy | None = None) -> InferenceResponse:
        """Route, call, and fail over until an answer is there; with nothing available, wait.

        Raises NoEligibleEndpoint, DeadlinePassed, or the last provider's error when there is no more to try.
        """
        job = await self._accepted(request, strategy)
        while True:
            decision = await self._decide(job)
            count = BIDS if decision.job.allow_fallback else 1
            granted = await self._admit(job, decision, decision.top(count))
            if granted is not None:
                response = await self._hedged(job, decision, *granted)
                if response is not None:
                    return response

    async def _accepted(self, request: InferenceRequest, strategy: RoutingStrategy | None) -> _Job:
        at, _ = await self._store.state()
        self._last_seen[request.constraints.lane] = at
        return _Job(request, at, strategy)

    async def _decide(self, job: _Job) -> Decision:
        """A decision to go; waits for it."""
        while True:
            snapshot, profile = await self.snapshot(), job.profile()
            if profile.deadline is not None and snapshot.at >= profile.deadline:
                raise DeadlinePassed("; ".join(["no answer by the deadline", *job.history]))
            self._turn += 1
            decision = rank(
                profile,
                snapshot,
                snapshot.at,
                self._rng,
                default_strategy=self._default_strategy,
                tried=job.tried,
                turn=self._turn,
            )
            decision.raise_if_refused()
            if decision.action is Action.GO:
                return decision
            await self._pause(profile, decision.wait_s, snapshot.at)

    async def _pause(self, profile: JobProfile, wait_s: float, now: float) -> None:
        if profile.deadline is not None:
            wait_s = min(wait_s, profile.deadline - now)
        await self._sleep(max(0.0, wait_s))

    async def _admit(
        self, job: _Job, decision: Decision, candidates: Sequence[Candidate]
    ) -> tuple[Candidate, Granted] | None:
        """A lease on the first candidate with room; None, after a pause, if there is none."""
        longest_s = max(candidate.timeout_s for candidate in candidates)
        bids = tuple(
            Bid(
                endpoint_id=candidate.endpoint.id,
                limits=candidate.endpoint.limits,
                input_tokens=candidate.input_tokens,
                output_tokens=candidate.output_tokens,
                cost_microusd=candidate.upper_cost_microusd or 0,
                overdue_s=candidate.overdue_s,
                probe_allowed=candidate.probe_allowed,
                shared_limits=candidate.endpoint.shared_limits,
            )
            for candidate in candidates
        )
        share = headroom(decision.job.lane, self._last_seen, decision.at)
        admission = await self._store.admit(Ask(uuid.uuid4().hex, bids, longest_s + LEASE_MARGIN_S, headroom=share))
        if isinstance(admission, Granted):
            chosen = next(c for c in candidates if c.endpoint.id == admission.endpoint_id)
            return chosen, admission
        retry_s = ROOM_RECHECK_S
        if isinstance(admission, NoRoom) and admission.retry_at is not None:
            retry_s = max(retry_s, min(admission.retry_at - admission.at, 1.0))
        await self._pause(decision.job, retry_s * self._rng.uniform(1.0, 1.5), decision.at)
        return None

    async def _hedged(
        self, job: _Job, decision: Decision, candidate: Candidate, granted: Granted
    ) -> InferenceResponse | None:
        """An attempt, and a second one elsewhere if it is slow and hedging is on: the first answer counts.

        The other call is cancelled; what it may have cost is booked as unsure.
        """
        after_s = decision.hedge_after_s if self._hedge else None
        if after_s is None:
            return await self._attempt(job, decision, candidate, granted)
        self._hedges.deposit()
        calls = {asyncio.create_task(self._attempt(job, decision, candidate, granted))}
        try:
            done, _ = await asyncio.wait(calls, timeout=after_s)
            if not done and self._hedges.withdraw():
                others = [c for c in decision.top(BIDS) if c.endpoint.id != candidate.endpoint.id]
                second = await self._admit(job, decision, others)
                if second is not None:
                    calls.add(asyncio.create_task(self._attempt(job, decision, *second)))
            while calls:
                done, calls = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
                answered = [call for call in done if call.exception() is None and call.result() is not None]
                if answered or not calls:
                    return (answered or list(done))[0].result()
            return None
        finally:
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    async def _attempt(
        self, job: _Job, decision: Decision, candidate: Candidate, granted: Granted
    ) -> InferenceResponse | None:
        """One call, what follows from it, and repeats in place. None: fail over, or later again."""
        id, retries = candidate.endpoint.id, 0
        while True:
            job.attempts += 1
            self._retries.deposit()
            response, failure, error = await self._call(job, decision, candidate, granted)
            if response is not None:
                return response
            assert failure is not None
            assert error is not None
            verdict = judge(
                failure,
                self._rng,
                attempt=job.attempts,
                retries_here=retries,
                retry_budget_left=self._retries.left,
                has_untried=decision.has_untried(id),
                allow_fallback=decision.job.allow_fallback,
            )
            self._remember(job, candidate, failure, verdict)
            await self._follow(candidate.endpoint, failure, verdict)
            if verdict.action is Next.GIVE_UP:
                error.add_note("; ".join(job.history))
                raise error
            at, _ = await self._store.state()
            await self._pause(decision.job, verdict.delay_s, at)
            if verdict.action is not Next.RETRY:
                job.tried = job.tried | {id} if verdict.action is Next.FAIL_OVER else frozenset()
                return None
            self._retries.withdraw()
            retries += 1
            again = await self._admit(job, decision, [candidate])
            if again is None:
                return None
            candidate, granted = again

    def _remember(self, job: _Job, candidate: Candidate, failure: Failure, verdict: Verdict) -> None:
        id = candidate.endpoint.id
        job.attempts -= not verdict.spends_attempt
        job.history.append(f"{id}: {failure.kind}: {failure.message}")
        job.failures[id] = job.failures.get(id, 0) + verdict.spends_attempt
        if failure.billed is not Billed.NO:
            job.spent_microusd += candidate.upper_cost_microusd or 0
        if verdict.exclude:
            job.excluded |= {id}

    async def _call(
        self, job: _Job, decision: Decision, candidate: Candidate, granted: Granted
    ) -> tuple[InferenceResponse | None, Failure | None, BaseException | None]:
        """One leased call and its report; the lease ends whatever happens."""
        endpoint, timeout_s = candidate.endpoint, candidate.timeout_s
        if decision.job.deadline is not None:
            timeout_s = max(0.001, min(timeout_s, decision.job.deadline - granted.at))
        report = Report(granted.lease_id, endpoint.id, ok=False, predicted_s=candidate.latency_s)
        try:
            async with asyncio.timeout(timeout_s):
                outcome = await self._owner[endpoint.id].call(endpoint, job.request)
        except BaseException as error:
            failure = _failure_of(error)
            upper = candidate.upper_cost_microusd or 0
            report = replace(
                report,
                kind=failure.kind,
                counts=judge(failure, self._rng).counts_for_health,
                cost_microusd=upper if failure.billed is Billed.YES else 0,
                unsure_microusd=upper if failure.billed is Billed.MAYBE else 0,
                limits=getattr(error, "limits", ()),
            )
            await asyncio.shield(self._report(report, failure))
            if failure.kind is FailureKind.CANCELLED or not isinstance(error, TimeoutError | _Failed):
                raise  # cancelled, or a bug of the connector and no failed call
            return None, failure, error
        response: InferenceResponse = outcome.response
        report = replace(
            report,
            ok=True,
            input_tokens=response.usage.input_tokens,
            output_tokens=response.usage.output_tokens,
            cost_microusd=response.cost_microusd or 0,
            latency_s=response.latency_s,
            ttft_s=response.time_to_first_token_s,
            limits=outcome.limits,
        )
        await self._report(report, None)
        return response, None, None

    # --- health ------------------------------------------------------------------------------------------

    async def _report(self, report: Report, failure: Failure | None) -> None:
        at, states = await self._store.state()
        health = self._fleet.snapshot(at, states).by_id[report.endpoint_id].health
        counts = await self._store.report(report)
        action = after_report(
            health,
            counts,
            failure.kind if failure else None,
            counts.at,
            self._rng,
            counts_for_health=report.counts,
            billed=failure is not None and failure.billed is Billed.YES,
            base_s=self._base_s,
        )
        await self._apply(report.endpoint_id, action)

    async def _apply(self, endpoint_id: str, action: HealthAction) -> None:
        if action.step is Step.TRIP:
            await self._store.trip(endpoint_id, action.open_s, action.reason)
        elif action.step is Step.RECOVER:
            await self._store.recover(endpoint_id)

    async def _follow(self, endpoint: Endpoint, failure: Failure, verdict: Verdict) -> None:
        """Cooldown or disabling, of the endpoint or of all that share its account."""
        ids = [endpoint.id]
        if verdict.scope is Scope.ACCOUNT:
            ids = [e.id for e in self._fleet.endpoints if e.account_id == endpoint.account_id]
        if verdict.disable:
            await self._store.disable(ids, f"{failure.kind}: {failure.message}")
        elif verdict.block_s > 0:
            await self._store.block(ids, verdict.block_s, str(failure.kind))

    async def check_health(self) -> dict[str, Failure | None]:
        """Ask every provider's free health endpoint now; by name, what was wrong, or None.

        A key that is refused disables its endpoints, and one that is accepted again enables them. An endpoint
        disabled for another reason gets one more chance every five minutes.
        """
        found = {name: await self._checked(connector) for name, connector in list(self._providers.items())}
        snapshot = await self.snapshot()
        for view in snapshot.views:
            id, reason = view.endpoint.id, view.health.disabled
            failure = found.get(self._owner[id].name)
            if failure is not None and failure.kind is FailureKind.UNAUTHORIZED and reason is None:
                await self._store.disable([id], f"{failure.kind}: {failure.message}")
            if reason is None:
                self._disabled_since.pop(id, None)
                continue
            since = self._disabled_since.setdefault(id, snapshot.at)
            waited = snapshot.at - since >= DISABLED_RECHECK_S
            if failure is None and (reason.startswith(FailureKind.UNAUTHORIZED) or waited):
                await self._store.restore([id])
        return found

    async def _checked(self, connector: Provider) -> Failure | None:
        try:
            await connector.check_health()
        except Exception as error:
            return _failure_of(error)
        return None

    async def watch(self) -> None:
        """Eject endpoints whose calls hang, and end leases that were abandoned. Done twice a second."""
        await self._store.expire()
        snapshot = await self.snapshot()
        for view in snapshot.views:
            action = after_watch(view.health, view.load, view.metrics, snapshot.at, self._rng, base_s=self._base_s)
            await self._apply(view.endpoint.id, action)

    async def _every(self, interval_s: float, work: Callable[[], Awaitable[object]]) -> None:
        while True:
            await work()
            await self._sleep(interval_s)

    async def __aenter__(self) -> Self:
        self._tasks = [
            asyncio.create_task(self._every(self._interval_s, self.check_health)),
            asyncio.create_task(self._every(WATCH_S, self.watch)),
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connector in self._providers.values():
            await connector.aclose()
