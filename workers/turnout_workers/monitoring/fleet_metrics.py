"""The fleet's shared state for Prometheus. Every worker tells the same: take the max over workers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from redis.exceptions import RedisError

from turnout.ledger import Keys
from turnout.ledger.script import Coalescer
from turnout.request import MICROUSD_PER_USD
from turnout_workers.monitoring import backlog
from turnout_workers.routing.fleet import Circuit
from turnout_workers.routing.health import circuit
from turnout_workers.state.snapshot import SnapshotPoller
from turnout_workers.state.store import Ceiling, FleetStore

logger = logging.getLogger(__name__)


class FleetCollector(Collector):
    """The shared state as of the last `refresh`."""

    def __init__(
        self,
        fleet: SnapshotPoller,
        store: FleetStore,
        call: Coalescer,
        keys: Keys,
        ceilings: Callable[[], Sequence[Ceiling]],
    ) -> None:
        """ceilings: those to watch, for the present day and month."""
        self._fleet = fleet
        self._store = store
        self._call = call
        self._keys = keys
        self._ceilings = ceilings
        self._backlog: Mapping[str, Any] = {}
        self._used: Mapping[str, float] = {}

    async def refresh(self) -> None:
        """Ask Redis for what the worker has no copy of. While it is away, these series are missing."""
        self._backlog, self._used = {}, {}
        try:
            told = await self._call.all(*backlog.reads(self._keys))
            limits = {one.account: one.limit_microusd for one in self._ceilings() if one.limit_microusd}
            money = await self._store.accounts(list(limits))
        except (RedisError, OSError) as error:
            logger.warning("metrics without the queues: %s", error)
            return
        self._backlog = backlog.told(told, self._fleet.now())
        self._used = {name: (one.spent + one.reserved + one.unsure) / limits[name] for name, one in money.items()}

    def collect(self) -> Iterator[GaugeMetricFamily]:
        snapshot = self._fleet.snapshot
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
        used = GaugeMetricFamily("turnout_fleet_ceiling_used_ratio", "Of a cost ceiling.", labels=["account", "period"])
        for name, ratio in self._used.items():
            account, _, date = name.partition("@")
            used.add_metric([account, "day" if date.count("-") == 2 else "month"], ratio)
        yield used
        if self._backlog:
            yield from self._of_backlog()

    def _of_backlog(self) -> Iterator[GaugeMetricFamily]:
        backlog = GaugeMetricFamily("turnout_fleet_backlog_jobs", "Jobs queued in a lane.", labels=["lane"])
        age = GaugeMetricFamily("turnout_fleet_backlog_age_seconds", "Age of a lane's first place.", labels=["lane"])
        for lane, told in self._backlog["lanes"].items():
            backlog.add_metric([lane], told["queued"])
            age.add_metric([lane], told["oldest_s"])
        money = GaugeMetricFamily("turnout_fleet_money_usd", "The books of all jobs.", labels=["kind"])
        for kind, usd in self._backlog["money_usd"].items():
            money.add_metric([kind], usd)
        yield backlog
        yield age
        yield money
        yield GaugeMetricFamily("turnout_fleet_parked_jobs", "Jobs that wait for room.", value=self._backlog["parked"])
        yield GaugeMetricFamily("turnout_fleet_held_jobs", "Jobs that workers have.", value=self._backlog["held"])
