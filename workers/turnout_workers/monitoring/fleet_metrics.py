"""`GET /metrics` of one worker process, served on its own loop: its own counts, and the fleet's shared state.

Every worker reports the same shared state: take the max over workers.
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

TIMEOUT_S = 3.0
"""For Redis. Prometheus waits for ten seconds, and then considers the worker gone."""

BY_ENDPOINT = (
    ("calls_in_flight", "Calls in flight, of all workers.", "in_flight"),
    ("free_ratio", "Share of the scarcest limit that is left.", "free"),
    ("cooldown_seconds", "Time until the endpoint may be called again.", "until_s"),
    ("error_ratio", "Share of recent calls that failed.", "error_rate"),
    ("spend_usd", "Spent at this endpoint since its counters began.", "spent_usd"),
)
"""Name, meaning, and column of `overview.endpoints`."""


@dataclass(eq=False)
class FleetCollector(Collector):
    """The shared state as of the last `refresh`."""

    fleet: SnapshotPoller
    send: Coalescer
    keys: Keys
    ceilings: Callable[[], Sequence[Ceiling]]
    """The ceilings to watch, for the current day and month."""
    _backlog: Mapping[str, Any] = field(default_factory=dict, init=False)
    _used: Mapping[str, float] = field(default_factory=dict, init=False)

    async def refresh(self) -> None:
        """Read from Redis what the worker has no copy of. While Redis is away, all series are missing: this worker's
        view would be old, and Prometheus takes the maximum over workers."""
        self._backlog, self._used = {}, {}
        limits = {ceiling.account: ceiling.limit_microusd for ceiling in self.ceilings() if ceiling.limit_microusd}
        try:
            async with asyncio.timeout(TIMEOUT_S):
                *_, money = replies = await self.send.all(*overview.backlog_operations(self.keys, limits))
        except (RedisError, OSError):  # other work of this worker logs it
            return
        self._backlog = overview.backlog(replies, self.fleet.now())
        spent = {name: sums.spent + sums.reserved + sums.unsure for name, sums in money.items()}
        self._used = {name: spent[name] / limit for name, limit in limits.items()}

    def collect(self) -> Iterator[GaugeMetricFamily]:
        if not (backlog := self._backlog):
            return
        rows = overview.endpoints(self.fleet.snapshot)
        for name, meaning, column in BY_ENDPOINT:
            yield _gauge(name, meaning, ["endpoint"], (([row["endpoint"]], row[column]) for row in rows))
        states = (([row["endpoint"], state.value], float(state == row["circuit"])) for row in rows for state in Circuit)
        yield _gauge("circuit", "1 for the current state.", ["endpoint", "state"], states)
        accounts = ((name.rpartition("@"), ratio) for name, ratio in self._used.items())
        used = (([who, "day" if date.count("-") == 2 else "month"], ratio) for (who, _, date), ratio in accounts)
        yield _gauge("ceiling_used_ratio", "Used share of a cost ceiling.", ["account", "period"], used)
        lanes, money = backlog["lanes"].items(), backlog["money_usd"].items()
        queued = (([lane], row["queued"]) for lane, row in lanes)
        yield _gauge("backlog_jobs", "Jobs queued in a lane.", ["lane"], queued)
        ages = (([lane], row["oldest_s"]) for lane, row in lanes)
        yield _gauge("backlog_age_seconds", "Age of a lane's first job.", ["lane"], ages)
        yield _gauge("money_usd", "The books of all jobs.", ["kind"], (([kind], usd) for kind, usd in money))
        yield _gauge("parked_jobs", "Jobs that wait for room.", [], [([], backlog["parked"])])
        yield _gauge("held_jobs", "Jobs held by workers.", [], [([], backlog["held"])])


def _gauge(
    name: str, meaning: str, labels: Sequence[str], series: Iterable[tuple[Sequence[str], float]]
) -> GaugeMetricFamily:
    gauge = GaugeMetricFamily(f"turnout_fleet_{name}", meaning, labels=labels)
    for values, value in series:
        gauge.add_metric(values, value)
    return gauge


@asynccontextmanager
async def served(registry: CollectorRegistry, fleet: FleetCollector, host: str, port: int) -> AsyncIterator[None]:
    """Serve while the block runs. If the port is taken, only log an error: jobs matter more."""
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
        logger.error("this worker serves no metrics: it can't listen on %s:%d (%s)", host, port, error)
    else:
        logger.info("metrics at http://%s:%d/metrics", host, runner.addresses[0][1])
    try:
        yield
    finally:
        await runner.cleanup()
