"""After a call: what it cost, what the fleet is told of it, and what follows for the endpoint."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from redis.exceptions import RedisError

from turnout.request import InferenceResponse, Usage
from turnout.result import Attempt
from turnout_workers.background.tasks import spawn
from turnout_workers.routing import failover
from turnout_workers.routing.decision import Candidate
from turnout_workers.routing.estimate import amend
from turnout_workers.routing.failure import Billed, Failure, FailureKind, Scope
from turnout_workers.routing.health import Eject, Recover, after_report
from turnout_workers.routing.latency import first_token, predict
from turnout_workers.state.snapshot import SnapshotPoller
from turnout_workers.state.store import FleetStore, ObservedLimit, Report

logger = logging.getLogger(__name__)

UNSENT = Failure(FailureKind.CANCELLED, "stopped before it was sent")
STOPPED = Failure(FailureKind.CANCELLED, "stopped before it was answered", Billed.MAYBE)
"""Of calls that we cancelled ourselves. A provider that has begun one may have worked all the same."""
REPORT_RETRIES_S = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Waits before a report that Redis did not take is sent once more; one that is sent twice counts once."""
PAID_REPORT_RETRIES_S = (15.0, 30.0, 60.0, 120.0, 240.0, 480.0)
"""Further waits, of a call that is known to have cost something: what is unsure by then becomes spent. Other reports
say what was then, and would harm an endpoint that is well by now."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A call that has ended: with a response, with a failure, or, for an answer that won't do, with both."""

    lease_id: str
    chosen: Candidate
    started_at: float
    duration_s: float
    response: InferenceResponse | None = None
    failure: Failure | None = None
    limits: tuple[ObservedLimit, ...] = ()
    """What the provider said of them."""
    late: bool = False
    """It ended long after its deadline: this process was paused, and its answer may be there, though nobody read it."""

    @property
    def billed(self) -> Billed:
        return self.failure.billed if self.failure else Billed.YES

    @property
    def cost_microusd(self) -> int:
        """What the call has cost for sure."""
        return (self._price_microusd or 0) if self.billed is Billed.YES else 0

    @property
    def unsure_microusd(self) -> int:
        """What it may have cost: whether it is billed is not certain, or it is, but nobody told us the amount."""
        price = self._price_microusd
        if self.billed is Billed.NO or (self.billed is Billed.YES and price is not None):
            return 0
        return (self.chosen.upper_cost_microusd or 0) if price is None else price

    @property
    def _price_microusd(self) -> int | None:
        """What the call costs if it is billed; None: unknown."""
        return self.response.cost_microusd if self.response else None

    @property
    def attempt(self) -> Attempt:
        endpoint, failure = self.chosen.endpoint, self.failure
        return Attempt(
            endpoint=endpoint.id,
            provider=endpoint.provider,
            model=endpoint.model,
            started_at=self.started_at,
            duration_s=self.duration_s,
            failure=failure.kind.value if failure else None,
            message=failure.message if failure else None,
            cost_microusd=self.cost_microusd,
            unsure_microusd=self.unsure_microusd,
        )


@dataclass(slots=True, eq=False)
class Reporter:
    """Tells the fleet's store how calls went, and what `routing/health.py` makes of it."""

    store: FleetStore
    fleet: SnapshotPoller
    ejection_s: float
    """Of the first ejection in a row."""
    rng: random.Random
    counted: Callable[[Finished], None] = lambda _: None
    """Is told of every call."""
    _late: set[asyncio.Task[None]] = field(default_factory=set, init=False)

    async def report(self, call: Finished, verdict: failover.Verdict) -> None:
        """End the call's lease; eject, cool down, disable or recover the endpoint as the verdict says."""
        endpoint = call.chosen.endpoint
        self.counted(call)
        ended_at, ok, counts = call.started_at + call.duration_s, call.failure is None, verdict.counts_for_health
        amend(self.fleet.snapshot, endpoint.id, lambda seen: seen.ended(ended_at, ok, counts))
        try:
            await self._tell(call, verdict)
        except (RedisError, OSError) as error:
            logger.debug("the call to %s is reported later: %s", endpoint.id, error)
            spawn(self._tell_later(call, verdict), self._late)

    async def stop(self, call: Finished) -> None:
        """Report a call that was cancelled."""
        await self.report(call, failover.judge(call.failure, self.rng))

    async def _tell(self, call: Finished, verdict: failover.Verdict) -> None:
        counters = await self.store.report(self._report(call, verdict.counts_for_health))
        endpoint, failure = call.chosen.endpoint, call.failure
        affected = [endpoint.id]
        if verdict.scope is Scope.ACCOUNT:
            views = self.fleet.snapshot.views
            affected = [view.endpoint.id for view in views if view.endpoint.account_id == endpoint.account_id]
        reason = f"{failure.kind}: {failure.message}" if failure else ""
        if verdict.disable:
            await self.store.mark("disabled", affected, reason)
            logger.warning("%s disabled: %s", ", ".join(affected), reason)
        if verdict.cooldown_s > 0:
            await self.store.mark("cooldown", affected, reason, verdict.cooldown_s, call.started_at)
        view = self.fleet.snapshot.by_id.get(endpoint.id)
        if view is None:  # it was taken out of the configuration since
            return
        match after_report(
            view.health,
            counters,
            failure,
            self.rng,
            counts_for_health=verdict.counts_for_health,
            base_s=self.ejection_s,
        ):
            case Eject(open_s, why):
                if await self.store.eject(endpoint.id, open_s, why):  # else another call's report has done it
                    logger.warning("%s ejected for %.1f s: %s", endpoint.id, open_s, why)
            case Recover():
                await self.store.recover(endpoint.id)
                logger.info("%s recovered", endpoint.id)

    def _report(self, call: Finished, counts: bool) -> Report:
        chosen, failure, response = call.chosen, call.failure, call.response
        taken = failure is not None and failure.billed is not Billed.NO  # as the provider counts, whatever it costs
        usage = response.usage if response else Usage(input_tokens=chosen.input_tokens if taken else 0)
        return Report(
            lease_id=call.lease_id,
            endpoint_id=chosen.endpoint.id,
            ok=failure is None,
            counts=counts,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cached_tokens=usage.cache_read_tokens,
            cost_microusd=call.cost_microusd,
            unsure_microusd=call.unsure_microusd,
            latency_s=response.latency_s if response else None,
            ttft_s=self._first_token_s(response, chosen.endpoint.id) if response else None,
            predicted_s=chosen.latency_s,
            limits=call.limits,
        )

    def _first_token_s(self, response: InferenceResponse, endpoint_id: str) -> float | None:
        """How long the first token took: as the response says, or as is likely of one that came whole."""
        snapshot = self.fleet.snapshot
        view = snapshot.by_id.get(endpoint_id)
        if response.time_to_first_token_s is not None or view is None:
            return response.time_to_first_token_s
        expected = predict(view.endpoint, view.metrics, snapshot.at)
        return first_token(response.latency_s, response.usage.output_tokens, *expected)

    async def _tell_later(self, call: Finished, verdict: failover.Verdict) -> None:
        """Report again once Redis is back, as a rule soon: until then the call takes a place among those in flight.

        If that comes too late, the lease has expired by itself, and its money counts as unsure, unless it is told yet.
        """
        for wait_s in (*REPORT_RETRIES_S, *(PAID_REPORT_RETRIES_S if call.cost_microusd else ())):
            await asyncio.sleep(wait_s * self.rng.uniform(1.0, 1.5))
            with contextlib.suppress(RedisError, OSError):
                await self._tell(call, verdict)
                return
