"""After a call: what it cost, what is reported to the fleet's store, and what follows for the endpoint."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from redis.exceptions import RedisError

from turnout.request import Capability, InferenceResponse, Usage
from turnout.result import Attempt
from turnout_workers.background.tasks import spawn
from turnout_workers.routing import failover
from turnout_workers.routing.decision import Candidate
from turnout_workers.routing.estimate import amend
from turnout_workers.routing.failure import Billed, Failure, FailureKind, Scope
from turnout_workers.routing.health import Eject, Recover, after_report
from turnout_workers.routing.latency import first_token, predict
from turnout_workers.routing.profile import upper_text_tokens
from turnout_workers.state.snapshot import SnapshotPoller
from turnout_workers.state.store import FleetStore, ObservedLimit, Report

logger = logging.getLogger(__name__)

UNSENT = Failure(FailureKind.CANCELLED, "stopped before it was sent")
STOPPED = Failure(FailureKind.CANCELLED, "stopped before it was answered", Billed.MAYBE)
"""A call that we cancelled. The provider may have worked on it anyway."""
REPORT_RETRIES_S = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Waits before a report that didn't reach Redis is sent again. One that arrives twice counts once."""
PAID_REPORT_RETRIES_S = (15.0, 30.0, 60.0, 120.0, 240.0, 480.0)
"""Further waits if the call is known to have cost something: its unsure money then becomes spent. Other reports are too
old by then, and could harm an endpoint that has recovered."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A call that has ended: with a response, with a failure, or with both if the answer won't do."""

    lease_id: str
    chosen: Candidate
    started_at: float
    duration_s: float
    response: InferenceResponse | None = None
    failure: Failure | None = None
    limits: tuple[ObservedLimit, ...] = ()
    """What the provider said about its limits."""
    late: bool = False
    """It ended long after its deadline, because this process was paused. Its answer may have come unread."""

    @property
    def billed(self) -> Billed:
        return self.failure.billed if self.failure else Billed.YES

    @property
    def cost_microusd(self) -> int:
        """What the call surely cost."""
        return (self._price_microusd or 0) if self.billed is Billed.YES else 0

    @property
    def unsure_microusd(self) -> int:
        """What it may have cost, if it isn't certain that it was billed, or if the amount is unknown."""
        price = self._price_microusd
        if self.billed is Billed.NO or (self.billed is Billed.YES and price is not None):
            return 0
        return self._upper_microusd if price is None else price

    @property
    def _upper_microusd(self) -> int:
        """The most that a call of unknown cost may have cost: what was reserved for it, or less if its whole answer can
        be seen, which isn't so where a model reasons."""
        chosen, response, price = self.chosen, self.response, self.chosen.endpoint.price
        reserved = chosen.upper_cost_microusd or 0
        if response is None or price is None or response.usage.source == "reported":
            return reserved
        if Capability.REASONING in chosen.endpoint.capabilities:
            return reserved
        calls = [f"{call.function.name}{call.function.arguments}" for call in response.tool_calls]
        text = "".join((response.text, response.refusal or "", response.reasoning_content or "", *calls))
        answer = upper_text_tokens(text) + 8 * (1 + len(calls))  # with its marks, as in a prompt
        return min(reserved, price.upper_microusd(chosen.upper_input_tokens, answer))

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
    """Reports to the fleet's store how calls went, and what `routing/health.py` makes of it."""

    store: FleetStore
    fleet: SnapshotPoller
    ejection_s: float
    """Length of the first ejection in a row."""
    rng: random.Random
    on_call: Callable[[Finished], None] = lambda _: None
    """Called with every call."""
    _retries: set[asyncio.Task[None]] = field(default_factory=set, init=False)

    async def report(self, call: Finished, verdict: failover.Verdict) -> None:
        """End the call's lease; eject, cool down, disable or recover the endpoint as the verdict says."""
        endpoint = call.chosen.endpoint
        self.on_call(call)
        ended_at, ok, counts = call.started_at + call.duration_s, call.failure is None, verdict.counts_for_health
        amend(self.fleet.snapshot, endpoint.id, lambda estimate: estimate.ended(ended_at, ok, counts))
        try:
            await self._send_report(call, verdict)
        except (RedisError, OSError) as error:
            logger.debug("the call to %s will be reported later: %s", endpoint.id, error)
            spawn(self._send_report_later(call, verdict), self._retries)

    async def stop(self, call: Finished) -> None:
        """Report a call that was cancelled."""
        await self.report(call, failover.judge(call.failure, self.rng))

    async def _send_report(self, call: Finished, verdict: failover.Verdict) -> None:
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
        if view is None:  # no longer configured
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
                if await self.store.eject(endpoint.id, open_s, why):  # otherwise another call's report has done it
                    logger.warning("%s ejected for %.1f s: %s", endpoint.id, open_s, why)
            case Recover():
                await self.store.recover(endpoint.id)
                logger.info("%s recovered", endpoint.id)

    def _report(self, call: Finished, counts: bool) -> Report:
        chosen, failure, response = call.chosen, call.failure, call.response
        counted = failure is not None and failure.billed is not Billed.NO  # by the provider, whatever it costs
        usage = response.usage if response else Usage(input_tokens=chosen.input_tokens if counted else 0)
        cached = usage.cache_read_tokens
        return Report(
            lease_id=call.lease_id,
            endpoint_id=chosen.endpoint.id,
            ok=failure is None,
            counts=counts,
            input_tokens=usage.input_tokens - (0 if chosen.endpoint.limits_count_cached else cached),
            output_tokens=usage.output_tokens,
            cached_share=cached / usage.input_tokens if usage.input_tokens else None,
            cost_microusd=call.cost_microusd,
            unsure_microusd=call.unsure_microusd,
            latency_s=response.latency_s if response else None,
            ttft_s=self._first_token_s(response, chosen.endpoint.id) if response else None,
            predicted_s=chosen.latency_s,
            limits=call.limits,
        )

    def _first_token_s(self, response: InferenceResponse, endpoint_id: str) -> float | None:
        """How long the first token took: as the response says, or estimated if it wasn't streamed."""
        snapshot = self.fleet.snapshot
        view = snapshot.by_id.get(endpoint_id)
        if response.time_to_first_token_s is not None or view is None:
            return response.time_to_first_token_s
        expected = predict(view.endpoint, view.metrics, snapshot.at)
        return first_token(response.latency_s, response.usage.output_tokens, *expected)

    async def _send_report_later(self, call: Finished, verdict: failover.Verdict) -> None:
        """Report again once Redis is back. Until then the call counts as in flight.

        If the lease expires first, its money is unsure until the report arrives.
        """
        for wait_s in (*REPORT_RETRIES_S, *(PAID_REPORT_RETRIES_S if call.cost_microusd else ())):
            await asyncio.sleep(wait_s * self.rng.uniform(1.0, 1.5))
            with contextlib.suppress(RedisError, OSError):
                await self._send_report(call, verdict)
                return
