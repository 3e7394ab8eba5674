"""`GET /metrics` of one worker process, served on its own loop: what it counts, and the fleet's shared state.

Every worker tells the same of the latter: take the max over workers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from redis.exceptions import RedisError

from turnout.ledger import Coalescer, Keys
from turnout_workers.monitoring import overview
from turnout_workers.routing.fleet import Circuit
from turnout_workers.state.snapshot import SnapshotPoller
from turnout_workers.state.store import Ceiling

logger = logging.getLogger(__name__)

WAIT_S = 3.0
"""For Redis. Prometheus waits for ten seconds, and then takes the worker for gone."""

BY_ENDPOINT = (
    ("calls_in_flight", "Calls in flight, of all workers.", "in_flight"),
    ("free_ratio", "Share of the scarcest limit that is left.", "free"),
    ("cooldown_seconds", "Time until the endpoint may be called again.", "until_s"),
    ("error_ratio", "Share of recent calls that failed.", "error_rate"),
    ("spend_usd", "Spent at this endpoint since its counters began.", "spent_usd"),
)
"""Name, meaning, and the column of `overview.endpoints`."""


@dataclass(eq=False)
class FleetCollector(Collector):
    """The shared state as of the last `refresh`."""

    fleet: SnapshotPoller
    send: Coalescer
    keys: Keys
    ceilings: Callable[[], Sequence[Ceiling]]
    """Those to watch, for the present day and month."""
    _backlog: Mapping[str, Any] = field(default_factory=dict, init=False)
    _used: Mapping[str, float] = field(default_factory=dict, init=False)

    async def refresh(self) -> None:
        """Ask Redis for what the worker has no copy of. While it is away, all series are missing: the view of a worker
        that is cut off is an old one, and Prometheus is to take the greatest of all."""
        self._backlog, self._used = {}, {}
        limits = {one.account: one.limit_microusd for one in self.ceilings() if one.limit_microusd}
        try:
            async with asyncio.timeout(WAIT_S):
                *_, money = told = await self.send.all(*overview.backlog_operations(self.keys, limits))
        except (RedisError, OSError):  # of which the rest of the worker tells
            return
        self._backlog = overview.backlog(told, self.fleet.now())
        spent = {name: one.spent + one.reserved + one.unsure for name, one in money.items()}
        self._used = {name: spent[name] / limit for name, limit in limits.items()}

    def collect(self) -> Iterator[GaugeMetricFamily]:
        if not (told := self._backlog):
            return
        rows = overview.endpoints(self.fleet.snapshot)
        for name, meaning, column in BY_ENDPOINT:
            yield _gauge(name, meaning, ["endpoint"], (([row["endpoint"]], row[column]) for row in rows))
        states = (([row["endpoint"], one.value], float(one == row["circuit"])) for row in rows for one in Circuit)
        yield _gauge("circuit", "1 for the state it is in.", ["endpoint", "state"], states)
        accounts = ((name.rpartition("@"), ratio) for name, ratio in self._used.items())
        used = (([who, "day" if date.count("-") == 2 else "month"], ratio) for (who, _, date), ratio in accounts)
        yield _gauge("ceiling_used_ratio", "Of a cost ceiling.", ["account", "period"], used)
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


@asynccontextmanager
async def served(registry: CollectorRegistry, fleet: FleetCollector, host: str, port: int) -> AsyncIterator[None]:
    """Serve while the block runs. A port that is taken is an error in the log, and no more: jobs matter more."""
    registry.register(fleet)

    async def scrape(_: web.BaseRequest) -> web.StreamResponse:
        await fleet.refresh()
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get("/metrics", scrape)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        logger.error("no metrics of this worker: %s:%d can't be listened on (%s)", host, port, error)
    else:
        logger.info("metrics at http://%s:%d/metrics", host, runner.addresses[0][1])
    try:
        yield
    finally:
        await runner.cleanup()
