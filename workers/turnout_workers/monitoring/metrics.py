"""The worker's metrics for Prometheus.

Counters and histograms are this process's own: sum them over workers. What begins with `turnout_fleet_` is the shared
state, told alike by every worker: take the max. Labels come from the configuration and from enumerations only, never
from jobs, so that no flood of models or tenants makes a flood of series.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from turnout.request import MICROUSD_PER_USD, Lane
from turnout.result import Attempt
from turnout_workers.reporting import Finished
from turnout_workers.routing.fleet import Circuit, Snapshot
from turnout_workers.routing.health import circuit

WAITS_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200, 43200)
"""From at once to half a day, for batches."""
CALLS_S = (0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120)


class SnapshotSource(Protocol):
    @property
    def snapshot(self) -> Snapshot: ...


class Metrics:
    """What one worker process counts."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, told: str, *labels: str) -> Counter:
            return Counter(name, told, labels, registry=registry)

        self._ended = counter("turnout_jobs", "Jobs that left this worker, by how.", "lane", "outcome")
        self._wait = Histogram(
            "turnout_queue_wait_seconds",
            "From acceptance to the first claim.",
            ["lane"],
            buckets=WAITS_S,
            registry=registry,
        )
        self._calls = counter("turnout_calls", "Calls to providers, by how they went.", "endpoint", "outcome")
        self._call_s = Histogram(
            "turnout_call_seconds", "Of successful calls.", ["endpoint"], buckets=CALLS_S, registry=registry
        )
        self._tokens = counter("turnout_tokens", "Tokens of successful calls.", "endpoint", "direction")
        self._spent = counter("turnout_spend_usd", "What calls have cost for sure.", "endpoint")
        self._unsure = counter("turnout_unsure_usd", "What broken calls may have cost.", "endpoint")
        self._moves = counter(
            "turnout_failovers", "Jobs moved from provider to provider.", "source", "target", "failure"
        )
        self._cut = counter("turnout_lease_losses", "Jobs that were lost to another worker, their calls aborted.")
        self._recovered = counter("turnout_recoveries", "Jobs that housekeeping brought back.", "how")
        self._held = Gauge("turnout_worker_jobs", "Jobs in flight in this process.", registry=registry)

    def claimed(self, lane: Lane, waited_s: float) -> None:
        self._wait.labels(lane.value).observe(max(0.0, waited_s))

    def ended(self, lane: Lane, outcome: str) -> None:
        """`outcome`: a job's final status, or `failed_over`, `deferred`, `handed_back`, `skipped`."""
        self._ended.labels(lane.value, outcome).inc()

    def called(self, call: Finished) -> None:
        endpoint = call.chosen.endpoint.id
        self._calls.labels(endpoint, call.failure.kind.value if call.failure else "ok").inc()
        self._spent.labels(endpoint).inc(call.cost_microusd / MICROUSD_PER_USD)
        self._unsure.labels(endpoint).inc(call.unsure_microusd / MICROUSD_PER_USD)
        if call.outcome is not None:
            response = call.outcome.response
            self._call_s.labels(endpoint).observe(response.latency_s or 0.0)
            self._tokens.labels(endpoint, "input").inc(response.usage.input_tokens)
            self._tokens.labels(endpoint, "output").inc(response.usage.output_tokens)

    def moved(self, failed: Attempt, provider: str) -> None:
        """A job whose last attempt failed is tried at another provider."""
        self._moves.labels(failed.provider, provider, failed.failure or "").inc()

    def lease_lost(self) -> None:
        self._cut.inc()

    def recovered(self, how: str, count: int) -> None:
        """`how`: `woken`, `swept`, `poison`, `expired`, `republished`."""
        if count:
            self._recovered.labels(how).inc(count)

    def held(self, count: Callable[[], float]) -> None:
        """Where to ask how many jobs are in flight here."""
        self._held.set_function(count)

    def exposition(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)


class FleetCollector(Collector):
    """The shared state, read from the worker's snapshot and from what was last asked of Redis."""

    def __init__(self, source: SnapshotSource) -> None:
        self._source = source
        self.queues: Mapping[str, Any] = {}
        """As `backlog.read` gives it."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        snapshot = self._source.snapshot
        gauges = {
            name: GaugeMetricFamily(f"turnout_fleet_{name}", told, labels=["endpoint"])
            for name, told in {
                "calls_in_flight": "Calls in flight, of all workers.",
                "free_ratio": "Share of the scarcest limit that is left.",
                "cooldown_seconds": "Time until the endpoint may be called again.",
                "error_ratio": "Share of recent calls that failed.",
                "spend_usd": "Spent at this endpoint since its counters began.",
                "waiting_jobs": "Jobs that would rather wait for this endpoint than take another.",
            }.items()
        }
        circuits = GaugeMetricFamily("turnout_fleet_circuit", "1 for the state it is in.", labels=["endpoint", "state"])
        for view in snapshot.views:
            health, load, now = view.health, view.load, snapshot.at
            values = {
                "calls_in_flight": load.in_flight,
                "free_ratio": load.free,
                "cooldown_seconds": max(0.0, max(health.open_until, health.blocked_until) - now),
                "error_ratio": view.metrics.error_rate,
                "spend_usd": view.metrics.spent_microusd / MICROUSD_PER_USD,
                "waiting_jobs": load.waiting,
            }
            for name, value in values.items():
                gauges[name].add_metric([view.endpoint.id], value)
            state = circuit(health, now)
            for one in Circuit:
                circuits.add_metric([view.endpoint.id, one.value], float(one is state))
        yield from gauges.values()
        yield circuits
        yield from self._of_queues()

    def _of_queues(self) -> Iterator[GaugeMetricFamily]:
        if not self.queues:
            return
        backlog = GaugeMetricFamily("turnout_fleet_backlog_jobs", "Jobs queued in a lane.", labels=["lane"])
        age = GaugeMetricFamily("turnout_fleet_backlog_age_seconds", "Age of its oldest queued job.", labels=["lane"])
        for lane, told in self.queues["lanes"].items():
            backlog.add_metric([lane], told["queued"])
            age.add_metric([lane], told["oldest_s"])
        money = GaugeMetricFamily("turnout_fleet_money_usd", "The books of all jobs.", labels=["kind"])
        for kind, usd in self.queues["money_usd"].items():
            money.add_metric([kind], usd)
        yield backlog
        yield age
        yield money
        yield GaugeMetricFamily("turnout_fleet_parked_jobs", "Jobs that wait for room.", value=self.queues["parked"])
        yield GaugeMetricFamily("turnout_fleet_held_jobs", "Jobs that workers have.", value=self.queues["held"])
