"""What is expected of each endpoint, computed once per snapshot, so that a decision is only arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from turnout_workers.routing.fleet import EndpointView, Price, Snapshot
from turnout_workers.routing.latency import MIN_SIGMA, predict

PRIOR_OUTCOMES = 2.0
"""Imaginary successes that temper the error rate of an endpoint that was called only a few times."""
MAX_ERROR_RATE = 0.95
MIN_LATENCY_S = 1e-3
FIRST_CALLS = 4
"""Calls in flight at an endpoint that has never answered, before others that have are preferred."""
CERTAIN_SIGMAS = 4.0
"""A deadline this many standard deviations away won't be missed, so the chance isn't computed."""


class Odds(NamedTuple):
    """What makes a call to an endpoint uncertain."""

    sigma: float
    certain_factor: float
    """Factor from the median latency to one that is surely not exceeded."""
    error_rate: float
    tries: float
    """Expected number of calls until one succeeds."""

    @classmethod
    def observed(cls, view: EndpointView) -> Odds:
        metrics = view.metrics
        error_rate = metrics.error_rate * metrics.error_weight / (metrics.error_weight + PRIOR_OUTCOMES)
        return cls.of(max(MIN_SIGMA, metrics.sigma), min(MAX_ERROR_RATE, error_rate))

    @classmethod
    def of(cls, sigma: float, error_rate: float) -> Odds:
        return cls(sigma, math.exp(CERTAIN_SIGMAS * sigma), error_rate, 1 / (1 - error_rate))


class Traffic(NamedTuple):
    """The unanswered calls of an endpoint."""

    in_flight: int
    failures: int
    """In a row; counted as load, because an endpoint whose calls fail immediately would look idle."""
    oldest_at: float
    """When the oldest call in flight began."""
    answered_at: float

    def missed(self, latency_s: float, now: float) -> float:
        """How many answers should have come since the last one, if each takes `latency_s`."""
        since = self.oldest_at + latency_s
        if since < self.answered_at:
            since = self.answered_at
        return self.in_flight * (now - since) / max(latency_s, MIN_LATENCY_S) if since < now else 0.0


class Estimate(NamedTuple):
    """One endpoint's part of the arithmetic."""

    ttft_s: float
    s_per_token: float
    input_price: float
    """With the share that is likely to be cached. Infinite if unknown, so that it ranks behind all known prices."""
    output_price: float
    needs_a_look: bool
    """Its circuit isn't simply closed, or it is busy or unproven: see `Options`."""
    odds: Odds
    traffic: Traffic
    view: EndpointView
    position: int

    def begun(self, now: float) -> Estimate:
        before = self.traffic
        oldest_at = before.oldest_at if before.in_flight else now
        return self._replace(traffic=before._replace(in_flight=before.in_flight + 1, oldest_at=oldest_at))

    def ended(self, now: float, ok: bool, counts: bool) -> Estimate:
        """counts: whether the outcome says anything about the endpoint. A success hardly changes its odds."""
        left = self.traffic._replace(in_flight=max(0, self.traffic.in_flight - 1))
        if not counts:
            return self._replace(traffic=left)
        if ok:
            return self._replace(traffic=left._replace(failures=0, answered_at=now))
        left, metrics = left._replace(failures=left.failures + 1), self.view.metrics
        weight = metrics.error_weight + 1
        error_rate = (metrics.error_rate * metrics.error_weight + 1) / weight
        view = self.view._replace(metrics=metrics._replace(error_rate=error_rate, error_weight=weight))
        return self._replace(traffic=left, view=view, odds=Odds.observed(view))


def estimates(snapshot: Snapshot) -> list[Estimate]:
    """The estimates of all endpoints, in the order of the fleet; computed on the first call, then remembered."""
    if not snapshot.estimates:
        snapshot.estimates.extend(
            _estimate(position, view, snapshot.at) for position, view in enumerate(snapshot.views)
        )
    return snapshot.estimates


def amend(snapshot: Snapshot, endpoint_id: str, change: Callable[[Estimate], Estimate]) -> None:
    """Take account of what this process has just done; what others did comes with the next snapshot."""
    if endpoint_id in snapshot.by_id:
        found, position = estimates(snapshot), snapshot.fleet.ids.index(endpoint_id)
        found[position] = change(found[position])


def _estimate(position: int, view: EndpointView, at: float) -> Estimate:
    endpoint, health, metrics, load = view.endpoint, view.health, view.metrics, view.load
    ttft_s, s_per_token = predict(endpoint, metrics, at)
    price = endpoint.price
    troubled = health.isolated is not None or health.disabled is not None or health.open_until > 0
    busy = max(health.cooldown_until, load.ready_at) > at or all_slots_taken(view)
    return Estimate(
        ttft_s=ttft_s,
        s_per_token=s_per_token,
        input_price=_input_price(price, metrics.cached_share) if price else math.inf,
        output_price=price.output if price else 0.0,
        needs_a_look=troubled or busy or is_unproven(view),
        odds=Odds.observed(view),
        traffic=Traffic(load.in_flight, health.consecutive_failures, load.oldest_started_at, metrics.latency_at),
        view=view,
        position=position,
    )


def _input_price(price: Price, cached_share: float) -> float:
    cached = price.input if price.cache_read is None else price.cache_read
    return price.input + cached_share * (cached - price.input)


def all_slots_taken(view: EndpointView) -> bool:
    """Whether as many calls are in flight as the endpoint allows."""
    slots = view.endpoint.limits.concurrency
    return slots is not None and view.load.in_flight >= slots


def is_unproven(view: EndpointView) -> bool:
    """Whether the endpoint has never answered, and already has its first calls in flight."""
    return view.metrics.latency_samples == 0 and view.load.in_flight >= FIRST_CALLS
