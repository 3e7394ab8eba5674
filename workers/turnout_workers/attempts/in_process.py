"""Requests that are answered in this process: ranked, admitted and called until there is an answer, or none can be."""

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
"""How much longer than its call a lease lasts: nobody renews it."""
ROOM_RECHECK_S = 0.05
"""The shortest wait after an admission that found no room."""
LOOK_AGAIN_S = 10.0
"""After so long a request that waits looks again: an operator's word, or a provider, may have come before its time."""
TICK_S = 0.001
"""Of the store's clock, by which a deadline that is over may still be ahead."""


class DeadlinePassed(TimeoutError):
    """The request was not answered by its deadline."""


@dataclass(slots=True, eq=False)
class InProcess:
    """What a worker's `Attempts` are for jobs of the ledger, for requests that nobody else has."""

    store: FleetStore
    fleet: SnapshotPoller
    rng: random.Random
    sleep: Callable[[float], Awaitable[None]]
    judging: Judge
    calling: Caller
    default_strategy: RoutingStrategy
    _decisions: int = field(default=0, init=False)
    _last_seen: dict[Lane, float] = field(default_factory=dict, init=False)
    _lines: MutableMapping[tuple[asyncio.AbstractEventLoop, str], asyncio.Lock] = field(
        default_factory=WeakValueDictionary, init=False
    )
    """Each as long as anybody stands in it. A lock is of one loop, and there may be several."""

    async def accept(
        self, request: InferenceRequest, strategy: RoutingStrategy | None = None, pinned: str | None = None
    ) -> Job:
        """A request whose time begins. pinned: the one endpoint that may be called."""
        at, known = (await self.fleet.poll()).at, request.constraints
        self._last_seen[known.lane] = at
        strategy = RoutingStrategy(strategy) if strategy else known.strategy
        wishes = {"strategy": strategy, "allow_fallback": known.allow_fallback and not pinned}
        request = request.model_copy(update={"constraints": known.model_copy(update=wishes)})
        return Job(uuid4().hex, request, known.deadline_at(at), Progress(), pinned=pinned)

    async def decide(self, job: Job) -> Decision:
        """A decision to go; waits for it. Raises NoEligibleEndpoint if none can come, DeadlinePassed if it is late."""
        while True:
            snapshot = await self.fleet.poll()
            self._in_time(job, snapshot.at)
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
    def _in_time(job: Job, now: float) -> None:
        """Raises DeadlinePassed."""
        if job.deadline is not None and now >= job.deadline:
            raise DeadlinePassed("; ".join(filter(None, ["no answer by the deadline", _history(job)])))

    async def _pause(self, job: Job, wait_s: float) -> None:
        wait_s = min(wait_s, LOOK_AGAIN_S)
        if job.deadline is not None:
            wait_s = min(wait_s, max(TICK_S, job.deadline - self.fleet.now()))
        await self.sleep(wait_s)

    async def answer(self, job: Job) -> InferenceResponse:
        """Call, and fail over, until there is one. Raises ProviderError when there is no more to try."""
        while True:
            async with self._line(job):
                permit = await self._permitted(job)
            if (response := await self._attempt(job, permit)) is not None:
                return response

    def _line(self, job: Job) -> AbstractAsyncContextManager[object]:
        """Of those that wait for the same the first looks for room, the others for their turn: a look takes time.

        One that has a deadline stands in no line: it may want a dearer endpoint sooner than those before it.
        """
        if job.deadline is not None:
            return nullcontext()
        name = wait_group_of(job.profile(), job.progress.tried, None, None, self.fleet.now())
        return self._lines.setdefault((asyncio.get_running_loop(), name), asyncio.Lock())

    async def _permitted(self, job: Job) -> Permit:
        """Look for room until there is some."""
        while True:
            decision = await self.decide(job)
            candidates = decision.bids()
            admission = await self._admit(job, job.repeated(candidates) or candidates)
            if isinstance(admission, Granted):
                return self.judging.permit(job, decision, candidates, admission)
            job.repeat(None)
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
        """Make the call. None: it failed, and another one is to be made. Raises ProviderError to give up."""
        made = await self.judging.made(permit, partial(self._admit, job, second=True), partial(self.calling, job))
        judged = self.judging(job, permit, made)
        await judged.told()
        await deliver_cancellation_now()
        ended, verdict = judged.call, judged.verdict
        if ended.failure is None:
            return ended.response
        if verdict.action is Next.GIVE_UP:
            self._in_time(job, self.fleet.now())
            error = ProviderError(ended.failure, ended.limits, ended.response)
            error.add_note(_history(job))
            raise error
        await self._pause(job, verdict.delay_s)
        if verdict.action is Next.DEFER:
            job.progress.defer(self.fleet.now(), new_round=True)
        return None


def _history(job: Job) -> str:
    """What failed so far, for people."""
    return "; ".join(f"{a.endpoint}: {a.failure}: {a.message}" for a in job.progress.attempts)
