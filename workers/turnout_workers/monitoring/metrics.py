"""What one worker process counts, for Prometheus: sum it over workers.

Labels come only from the configuration and from enumerations, never from jobs, so that many models or tenants don't
make many series.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from turnout.request import MICROUSD_PER_USD, Lane
from turnout.result import Attempt
from turnout_workers.attempts.reporting import Finished

WAITS_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200, 43200)
"""Up to half a day, for batches."""
CALLS_S = (0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120)
Recovery = Literal["woken", "swept", "poison", "expired", "republished"]
"""A parked job got room; a job's worker died; a job was given up as poison; its deadline passed; its message was
lost."""


class Metrics:
    """What one worker process counts."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        # Looking up a labelled series costs more than counting in it. There are few, all from the configuration.
        def counter(name: str, meaning: str, *labels: str) -> Callable[..., Counter]:
            return cache(Counter(name, meaning, labels, registry=registry).labels)

        def histogram(name: str, meaning: str, label: str, buckets: Sequence[float]) -> Callable[[str], Histogram]:
            return cache(Histogram(name, meaning, [label], buckets=buckets, registry=registry).labels)

        self._ended = counter("turnout_jobs", "Jobs that left this worker, by outcome.", "lane", "outcome")
        self._wait = histogram("turnout_queue_wait_seconds", "From acceptance to the first claim.", "lane", WAITS_S)
        self._calls = counter("turnout_calls", "Calls to providers, by outcome.", "endpoint", "outcome")
        self._call_s = histogram("turnout_call_seconds", "Duration of successful calls.", "endpoint", CALLS_S)
        self._tokens = counter("turnout_tokens", "Tokens of successful calls.", "endpoint", "direction")
        self._spent = counter("turnout_spend_usd", "Confirmed cost of calls.", "endpoint")
        self._unsure = counter("turnout_unsure_usd", "What calls may have cost besides.", "endpoint")
        self._moves = counter("turnout_failovers", "Jobs that changed providers.", "source", "target", "failure")
        self._cut = Counter(
            "turnout_lease_losses", "Jobs lost to another worker, their calls aborted.", registry=registry
        )
        self._recovered = counter("turnout_recoveries", "Jobs that housekeeping brought back or ended.", "how")
        for how in get_args(Recovery):
            self._recovered(how)  # a series that begins with an event has no increase for alerts to watch
        self._held = Gauge("turnout_worker_jobs", "Jobs in flight in this process.", registry=registry)
        self._free = Gauge("turnout_worker_free_slots", "Jobs that this process would take now.", registry=registry)

    def claimed(self, lane: Lane, waited_s: float) -> None:
        self._wait(lane.value).observe(max(0.0, waited_s))

    def ended(self, lane: Lane, outcome: str) -> None:
        """outcome: a job's final status, or `failed_over`, `deferred`, `handed_back`, `skipped`."""
        self._ended(lane.value, outcome).inc()

    def called(self, call: Finished) -> None:
        endpoint = call.chosen.endpoint.id
        self._calls(endpoint, call.failure.kind.value if call.failure else "ok").inc()
        self._spent(endpoint).inc(call.cost_microusd / MICROUSD_PER_USD)
        if call.unsure_microusd:
            self._unsure(endpoint).inc(call.unsure_microusd / MICROUSD_PER_USD)
        if (response := call.response) is not None:
            self._call_s(endpoint).observe(response.latency_s or 0.0)
            self._tokens(endpoint, "input").inc(response.usage.input_tokens)
            self._tokens(endpoint, "output").inc(response.usage.output_tokens)

    def moved(self, failed: Attempt, provider: str) -> None:
        """Count a job that moves to another provider after a failed attempt."""
        self._moves(failed.provider, provider, failed.failure or "").inc()

    def lease_lost(self) -> None:
        self._cut.inc()

    def recovered(self, how: Recovery, count: int) -> None:
        if count:
            self._recovered(how).inc(count)

    def held(self, count: Callable[[], float], free: Callable[[], float]) -> None:
        """Set the functions that return the jobs in flight here, and how many more would be taken."""
        self._held.set_function(count)
        self._free.set_function(free)
