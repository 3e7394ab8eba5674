"""The simulated providers' own books: calls, answers, bills, and the active faults."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any

from turnout_workers.simulator.answers import Answer
from turnout_workers.simulator.scenario import Fault, SimulatedModel, SimulatedProvider
from turnout_workers.simulator.wire import Problem

Meter = tuple[str, str]
"""Limits count for one key and one model."""


@dataclass(slots=True)
class _TimedFault:
    """An announced fault: when it was announced, and when it became active."""

    fault: Fault
    from_s: float
    from_requests: int
    on_s: float | None = None
    on_requests: int = 0

    def active(self, now: float, requests: int) -> bool:
        fault = self.fault
        if self.on_s is None:
            if now - self.from_s < fault.after_s or requests - self.from_requests < fault.after_requests:
                return False
            self.on_s, self.on_requests = now, requests
        over = fault.for_s is not None and now - self.on_s >= fault.for_s
        return not over and (fault.for_requests is None or requests - self.on_requests < fault.for_requests)


@dataclass(slots=True)
class Bucket:
    """A limit: a token bucket that starts full and is refilled continuously, as providers do."""

    limit: int
    period_s: float
    level: float
    at: float

    def refill(self, now: float) -> None:
        self.level = min(self.limit, self.level + (now - self.at) * self.limit / self.period_s)
        self.at = now

    def wait_s(self, amount: float) -> float:
        """Time until `amount` is free."""
        return max(0.0, (min(amount, self.limit) - self.level) * self.period_s / self.limit)


@dataclass(slots=True)
class Job:
    """One job as all providers together saw it."""

    calls: int = 0
    answered: int = 0
    billed: int = 0


@dataclass(slots=True)
class Counts:
    """What one simulated provider has seen."""

    requests: int = 0
    """Without health checks."""
    answered: int = 0
    billed_microusd: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    """By HTTP status, or the name of the fault if there was no answer."""

    def replied(self, status: str) -> None:
        self.statuses[status] = self.statuses.get(status, 0) + 1


class Books:
    """State of one simulated provider."""

    def __init__(self, name: str, provider: SimulatedProvider, now: float, seed: int) -> None:
        self.name, self.provider = name, provider
        self.counts = Counts()
        self.models = {model.name or ours: model for ours, model in provider.models.items()}
        self.rng = Random(f"{seed}/{name}")
        self._faults = [_TimedFault(fault, now, 0) for fault in provider.faults]
        self._buckets: dict[Meter, dict[str, Bucket]] = {}
        self._in_flight: Counter[Meter] = Counter()

    def announce(self, fault: Fault, now: float) -> None:
        self._faults.append(_TimedFault(fault, now, self.counts.requests))

    def clear(self) -> None:
        self._faults.clear()

    def faults(self, now: float) -> Iterator[Fault]:
        """The active faults."""
        return (timed.fault for timed in self._faults if timed.active(now, self.counts.requests))

    def struck(self, now: float, check: bool) -> dict[str, Fault]:
        """Count a request, unless it is a health check. Returns the faults that hit it, by kind."""
        struck: dict[str, Fault] = {f.kind: f for f in self.faults(now) if f.share >= 1 or self.rng.random() < f.share}
        self.counts.requests += not check
        return struck

    @contextmanager
    def admitted(self, meter: Meter, answer: Answer, now: float) -> Iterator[None]:
        """Count a call in flight, and charge its limits. Raises Problem if one is reached."""
        slots = self._limits(meter).get("concurrency")
        if slots is not None and self._in_flight[meter] >= slots:
            raise Problem("rate_limited", f"Too many concurrent requests: limit {slots}.", retry_after_s=1.0)
        total = answer.input_tokens + answer.output_tokens
        wanted = {
            "input_tokens_per_minute": answer.input_tokens,
            "output_tokens_per_minute": answer.output_tokens,
            "tokens_per_minute": total,
            "tokens_per_day": total,
        }
        buckets = self.limits(meter, now)
        for kind, bucket in buckets.items():
            if (wait_s := bucket.wait_s(wanted.get(kind, 1))) > 0:
                text = f"Rate limit reached for {kind}: limit {bucket.limit}. Please try again in {wait_s:.3f}s."
                raise Problem("rate_limited", text, retry_after_s=wait_s, exceeded=(kind, bucket.limit))
        for kind, bucket in buckets.items():
            bucket.level -= wanted.get(kind, 1)
        self._in_flight[meter] += 1
        try:
            yield
        finally:
            self._in_flight[meter] -= 1

    def bill(self, model: SimulatedModel, answer: Answer) -> None:
        """Book what this call costs: real providers bill what they generate, even if the caller is gone."""
        exact = model.input_usd_per_mtok * answer.input_tokens + model.output_usd_per_mtok * answer.output_tokens
        self.counts.billed_microusd += math.ceil(round(exact, 6))

    def stats(self, now: float) -> dict[str, Any]:
        faults = [fault.kind for fault in self.faults(now)]
        return {**asdict(self.counts), "in_flight": self._in_flight.total(), "faults": faults}

    def limits(self, meter: Meter, now: float) -> dict[str, Bucket]:
        """The current limits, by kind."""
        if (buckets := self._buckets.get(meter)) is None:
            buckets = self._buckets[meter] = {
                kind: Bucket(limit, 86_400.0 if kind.endswith("day") else 60.0, float(limit), now)
                for kind, limit in self._limits(meter).items()
                if kind != "concurrency"
            }
        for bucket in buckets.values():
            bucket.refill(now)
        return buckets

    def _limits(self, meter: Meter) -> dict[str, int]:
        return self.provider.limits(self.models[meter[1]])
