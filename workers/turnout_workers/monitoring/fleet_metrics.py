"""The fleet's shared state for Prometheus. Every worker tells the same: take the max over workers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from redis.exceptions import RedisError

from turnout.ledger import Coalescer, Keys
from turnout.request import MICROUSD_PER_USD
from turnout_workers.monitoring import backlog
from turnout_workers.routing.fleet import Circuit, EndpointView
from turnout_workers.routing.health import circuit
from turnout_workers.state.snapshot import SnapshotPoller
from turnout_workers.state.store import Ceiling, FleetStore

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class FleetCollector(Collector):
    """The shared state as of the last `refresh`."""

    fleet: SnapshotPoller
    store: FleetStore
    call: Coalescer
    keys: Keys
    ceilings: Callable[[], Sequence[Ceiling]]
    """Those to watch, for the present day and month."""
    _backlog: Mapping[str, Any] = field(default_factory=dict, init=False)
    _used: Mapping[str, float] = field(default_factory=dict, init=False)

    async def refresh(self) -> None:
        """Ask Redis for what the worker has no copy of. While it is away, these series are missing."""
        self._backlog, self._used = {}, {}
        try:
            told = await self.call.all(*backlog.reads(self.keys))
            limits = {one.account: one.limit_microusd for one in self.ceilings() if one.limit_microusd}
            money = await self.store.accounts(list(limits))
        except (RedisError, OSError) as error:
            logger.warning("metrics without the queues: %s", error)
            return
        self._backlog = backlog.told(told, self.fleet.now())
        self._used = {name: (one.spent + one.reserved + one.unsure) / limits[name] for name, one in money.items()}

    def collect(self) -> Iterator[GaugeMetricFamily]:
        views, now = self.fleet.snapshot.views, self.fleet.snapshot.at

        def each(name: str, told: str, value: Callable[[EndpointView], float]) -> GaugeMetricFamily:
            return _gauge(name, told, ["endpoint"], (([view.endpoint.id], value(view)) for view in views))

        def cooldown_s(view: EndpointView) -> float:
            return max(0.0, max(view.health.open_until, view.health.blocked_until) - now)

        yield each("calls_in_flight", "Calls in flight, of all workers.", lambda view: view.load.in_flight)
        yield each("free_ratio", "Share of the scarcest limit that is left.", lambda view: view.load.free)
        yield each("cooldown_seconds", "Time until the endpoint may be called again.", cooldown_s)
        yield each("error_ratio", "Share of recent calls that failed.", lambda view: view.metrics.error_rate)
        spent = "Spent at this endpoint since its counters began."
        yield each("spend_usd", spent, lambda view: view.metrics.spent_microusd / MICROUSD_PER_USD)
        waiting = "Jobs that would rather wait for this endpoint than take another."
        yield each("waiting_jobs", waiting, lambda view: view.load.waiting)
        states = (
            ([view.endpoint.id, one.value], float(one is circuit(view.health, now)))
            for view in views
            for one in Circuit
        )
        yield _gauge("circuit", "1 for the state it is in.", ["endpoint", "state"], states)
        accounts = ((name.partition("@"), ratio) for name, ratio in self._used.items())
        used = (([who, "day" if date.count("-") == 2 else "month"], ratio) for (who, _, date), ratio in accounts)
        yield _gauge("ceiling_used_ratio", "Of a cost ceiling.", ["account", "period"], used)
        if told := self._backlog:
            lanes, money = told["lanes"].items(), told["money_usd"].items()
            queued = (([lane], one["queued"]) for lane, one in lanes)
            yield _gauge("backlog_jobs", "Jobs queued in a lane.", ["lane"], queued)
            ages = (([lane], one["oldest_s"]) for lane, one in lanes)
            yield _gauge("backlog_age_seconds", "Age of a lane's first place.", ["lane"], ages)
            yield _gauge("money_usd", "The books of all jobs.", ["kind"], (([kind], usd) for kind, usd in money))
            yield _gauge("parked_jobs", "Jobs that wait for room.", [], [([], told["parked"])])
            yield _gauge("held_jobs", "Jobs that workers have.", [], [([], told["held"])])


def _gauge(
    name: str, told: str, labels: Sequence[str], series: Iterable[tuple[Sequence[str], float]]
) -> GaugeMetricFamily:
    gauge = GaugeMetricFamily(f"turnout_fleet_{name}", told, labels=labels)
    for values, value in series:
        gauge.add_metric(values, value)
    return gauge
