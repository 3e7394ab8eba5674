"""Requests answered in this process: ranked, admitted and called until there is an answer or can't be one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from uuid import uuid4
from weakref import WeakValueDictionary

from turnout.request import InferenceRequest, InferenceResponse, Lane, RoutingStrategy
from turnout.uninterrupted import deliver_cancellation_now
from turnout_workers.attempts.calling import Caller
from turnout_workers.attempts.hedging import Permit
from turnout_workers.attempts.job import Job, Progress
from turnout_workers.attempts.judging import Judge
from turnout_workers.attempts.parking import wait_group_of
from turnout_workers.providers.errors import ProviderError
from turnout_workers.routing.decision import Action, Candidate, Decision, rank
from turnout_workers.routing.failover import Next
from turnout_workers.routing.sharing import headroom
from turnout_workers.state.snapshot import SnapshotPoller
from turnout_workers.state.store import Admission, Ask, Bid, FleetStore, Granted, NoRoom

LEASE_MARGIN_S = 30.0
"""How much longer than its call a lease lasts, because it isn't renewed."""
ROOM_RECHECK_S = 0.05
"""The shortest wait after admission found no room."""
LOOK_AGAIN_S = 10.0
"""A waiting request looks again after this time: an operator or a provider may have made room early."""
TICK_S = 0.001
"""Of the store's clock, on which a deadline that has passed may still be ahead."""


class DeadlinePassed(TimeoutError):
    """The request was not answered by its deadline."""


@dataclass(slots=True, eq=False)
class InProcess:
    """The counterpart of a worker's `Attempts`, for requests that aren't in a ledger."""

    store: FleetStore
    fleet: SnapshotPoller
    rng: random.Random
    sleep: Callable[[float], Awaitable[None]]
    judge: Judge
    caller: Caller
    default_strategy: RoutingStrategy
    _decisions: int = field(default=0, init=False)
    _last_seen: dict[Lane, float] = field(default_factory=dict, init=False)
    _locks: MutableMapping[tuple[asyncio.AbstractEventLoop, str], asyncio.Lock] = field(
        default_factory=WeakValueDictionary, init=False
    )
    """By event loop and wait group; each lives as long as a request uses it. A lock belongs to one loop."""

    async def accept(
        self, request: InferenceRequest, strategy: RoutingStrategy | None = None, pinned: str | None = None
    ) -> Job:
        """Start the clock of a request. pinned: the one endpoint that may be called."""
        at, constraints = (await self.fleet.poll()).at, request.constraints
        self._last_seen[constraints.lane] = at
        strategy = RoutingStrategy(strategy) if strategy else constraints.strategy
        changes = {"strategy": strategy, "allow_fallback": constraints.allow_fallback and not pinned}
        request = request.model_copy(update={"constraints": constraints.model_copy(update=changes)})
        return Job(uuid4().hex, request, constraints.deadline_at(at), Progress(), pinned=pinned)

    async def decide(self, job: Job) -> Decision:
        """Wait for a decision to go. Raises NoEligibleEndpoint if none can come, DeadlinePassed if it is too late."""
        while True:
            snapshot = await self.fleet.poll()
            self._raise_if_late(job, snapshot.at)
            self._decisions += 1
            decision = rank(
                job.profile(),
                snapshot,
                snapshot.at,
                self.rng,
                default_strategy=self.default_strategy,
                tried=job.tried,
                decision_number=self._decisions,
            )
            if (refusal := decision.refusal) is not None:
                if job.progress.attempts:
                    refusal.add_note(_history(job))
                raise refusal
            if decision.action is Action.GO:
                return decision
            await self._pause(job, decision.wait_s)

    @staticmethod
    def _raise_if_late(job: Job, now: float) -> None:
        """Raises DeadlinePassed."""
        if job.deadline is not None and now >= job.deadline:
            raise DeadlinePassed("; ".join(filter(None, ["no answer by the deadline", _history(job)])))

    async def _pause(self, job: Job, wait_s: float) -> None:
        wait_s = min(wait_s, LOOK_AGAIN_S)
        if job.deadline is not None:
            wait_s = min(wait_s, max(TICK_S, job.deadline - self.fleet.now()))
        await self.sleep(wait_s)

    async def answer(self, job: Job) -> InferenceResponse:
        """Call, and fail over, until there is an answer. Raises ProviderError when there is nothing left to try."""
        while True:
            async with self._first_of_group(job):
                permit = await self._find(job)
            if (response := await self._attempt(job, permit)) is not None:
                return response

    def _first_of_group(self, job: Job) -> AbstractAsyncContextManager[object]:
        """Of requests that wait for the same, let only the first look for room, because a look takes time.

        A request with a deadline doesn't queue: it may need a dearer endpoint sooner than those before it.
        """
        if job.deadline is not None:
            return nullcontext()
        name = wait_group_of(job.profile(), job.progress.tried, None, None, self.fleet.now())
        return self._locks.setdefault((asyncio.get_running_loop(), name), asyncio.Lock())

    async def _find(self, job: Job) -> Permit:
        """Look for an endpoint until one has room."""
        while True:
            decision = await self.decide(job)
            candidates = decision.bids()
            admission = await self._admit(job, job.only_retry(candidates) or candidates)
            if isinstance(admission, Granted):
                return self.judge.permit(job, decision, candidates, admission)
            job.set_retry(None)
            wait_s = ROOM_RECHECK_S
            if isinstance(admission, NoRoom) and admission.retry_at is not None:
                wait_s = max(wait_s, min(admission.retry_at - admission.at, 1.0))
            await self._pause(job, wait_s * self.rng.uniform(1.0, 1.5))

    async def _admit(self, job: Job, candidates: Sequence[Candidate], *, second: bool = False) -> Admission:
        longest_s = max(candidate.timeout_s for candidate in candidates)
        share = headroom(job.request.constraints.lane, self._last_seen, self.fleet.now())
        lease_id, bids = f"{job.id}:{len(job.progress.attempts) + second}", tuple(map(Bid.of, candidates))
        return await self.store.admit(Ask(lease_id, bids, longest_s + LEASE_MARGIN_S, headroom=share))

    async def _attempt(self, job: Job, permit: Permit) -> InferenceResponse | None:
        """Make the call. None: it failed, and another one follows. Raises ProviderError to give up."""
        finished = await self.judge.start(
            permit, partial(self._admit, job, second=True), partial(self.caller.call, job)
        )
        judged = self.judge.judge(job, permit, finished)
        await judged.reports_delivered()
        await deliver_cancellation_now()
        ended, verdict = judged.call, judged.verdict
        if ended.failure is None:
            return ended.response
        if verdict.action is Next.GIVE_UP:
            self._raise_if_late(job, self.fleet.now())
            error = ProviderError(ended.failure, ended.limits, ended.response)
            error.add_note(_history(job))
            raise error
        await self._pause(job, verdict.delay_s)
        if verdict.action is Next.DEFER:
            job.progress.park(self.fleet.now(), new_round=True)
        return None


def _history(job: Job) -> str:
    """What has failed so far, for people."""
    return "; ".join(f"{a.endpoint}: {a.failure}: {a.message}" for a in job.progress.attempts)
