"""One worker process: everything that its loop needs, built in order and closed in reverse."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import Future
from contextlib import AsyncExitStack, aclosing, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from redis.exceptions import RedisError

from turnout.ledger import Coalescer, Keyring, Keys, Ledger, TakenEnd
from turnout.redis_address import connect_async
from turnout.uninterrupted import uninterrupted
from turnout_workers.attempts.attempt import Attempts
from turnout_workers.attempts.ceilings import ConfiguredCeilings
from turnout_workers.attempts.parking import Parking
from turnout_workers.attempts.parts import Parts
from turnout_workers.background import housekeeping, reload, spool
from turnout_workers.background.batch_feeding import BatchFeeding
from turnout_workers.background.fleet_watch import CallWatch, eject_hanging
from turnout_workers.background.health_checks import HealthChecks
from turnout_workers.background.heartbeat import Heartbeat
from turnout_workers.background.housekeeping import Housekeeping
from turnout_workers.background.old_accounts import OldAccounts
from turnout_workers.background.reload import Reload
from turnout_workers.background.spool import Spool, SpoolDrain
from turnout_workers.background.tasks import ERROR_PAUSE_S, cancel_all, log_if_redis_is_away, run_repeatedly, spawn
from turnout_workers.background.webhooks import Webhooks
from turnout_workers.celery_jobs import CeleryJobs
from turnout_workers.config import Settings, accounts
from turnout_workers.config.current_config import CurrentConfig
from turnout_workers.config.tables import Config
from turnout_workers.monitoring import tracing
from turnout_workers.monitoring.metrics import Metrics
from turnout_workers.process_limits import keep_memory_private
from turnout_workers.providers import CloudProviderBase, ProviderConfig, build
from turnout_workers.providers.http import Http
from turnout_workers.routing.fleet import Fleet
from turnout_workers.state import fitness
from turnout_workers.state.fast_pipeline import send_commands
from turnout_workers.state.redis_store import RedisFleetStore
from turnout_workers.state.snapshot import SnapshotPoller

logger = logging.getLogger(__name__)
T = TypeVar("T")

ALIVE_EVERY_S = 5.0
RETIRED_S = 3600.0
"""How long a connector is kept after it left the configuration: longer than any call."""
CONNECTIONS = 8
"""To Redis. The commands of all jobs are sent together, so a few connections carry thousands."""
FLIGHTS = 2
"""Round trips at a time: Redis has the next batch at hand while the loop reads the replies of the last. With one, each
waits for the other."""


class Worker:
    """What runs on a worker's loop. `start` and `stop` are called there by the pool."""

    attempts: Attempts
    celery_jobs: CeleryJobs
    slots: int
    """How many jobs the pool takes at a time."""

    def __init__(self, settings: Settings) -> None:
        self.drain_s = settings.config.worker.drain_s
        """How long a stopping worker lets its calls finish."""
        self.name = f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:6]}"
        self._tasks: set[asyncio.Task[None]] = set()
        self.current = CurrentConfig(settings)
        self._connectors: dict[ProviderConfig, CloudProviderBase] = {}
        self._open = AsyncExitStack()
        """What is closed at the end, in reverse order."""

    async def start(self, slots: int, free_slots: Callable[[], int]) -> None:
        """slots: how many jobs the pool takes at a time. free_slots: how many more it would take now."""
        settings, self._loop, self.slots = self.current.settings, asyncio.get_running_loop(), slots
        keep_memory_private()
        if path := os.environ.get("TURNOUT_ALIVE"):  # for the health checks of containers, also while Redis is away
            self._keep_up(partial(asyncio.to_thread, Path(path).touch), ALIVE_EVERY_S, path)
        tracing.configure(os.environ)
        self._client = connect_async(
            settings.config.redis_url,
            max_connections=CONNECTIONS,
            # A later reply is useless to a held job, and renewals would pile up behind it.
            socket_timeout=min(20.0, settings.config.worker.lease_s * 2 / 3),
            socket_connect_timeout=5,
        )
        self._open.push_async_callback(self._client.aclose)
        self._http = await self._open.enter_async_context(aclosing(Http()))
        self._open.push_async_callback(_close, self._connectors.values())
        self._parts = parts = self._assembled(settings.config)
        await self._show_metrics(parts, free_slots)
        await self._connected()
        await self._look_at_redis()
        if trouble := parts.spool.trouble():
            unusable = "no spool: while Redis is away, answers will be lost and paid for again. Set TURNOUT_SPOOL: %s"
            logger.error(unusable, trouble)
        self.celery_jobs = CeleryJobs(parts.ledger, parts.send, self.current)
        self.attempts = Attempts(parts)
        self._use(settings)
        self._work_in_background(parts)
        logger.info("worker %s serves %d endpoints", self.name, len(self.current.connectors))

    def _assembled(self, config: Config) -> Parts:
        send = Coalescer(self._client, send_commands, FLIGHTS)
        ledger = Ledger(Keys(config.namespace), keyring=Keyring.of(os.environ))
        store = RedisFleetStore(send, ledger.keys)
        fleet, parking = SnapshotPoller(store, Fleet(())), Parking(ledger, send)
        return Parts(
            owner=self.name,
            ledger=ledger,
            send=send,
            store=store,
            fleet=fleet,
            heartbeat=Heartbeat(ledger, send, store, config.worker.lease_s, self._loop.time),
            watch=CallWatch(store, fleet, self.name, came_back=parking.look_again_now),
            parking=parking,
            ceilings=ConfiguredCeilings(self.current, fleet.now),
            spool=Spool(Path(os.environ.get("TURNOUT_SPOOL", ".turnout/spool")), config.redis_url, config.namespace),
            current=self.current,
            metrics=Metrics(),
            rng=random.Random(),
        )

    async def _show_metrics(self, parts: Parts, free_slots: Callable[[], int]) -> None:
        parts.metrics.held(parts.heartbeat.__len__, free_slots)
        monitoring = self.current.config.monitoring
        if monitoring.metrics_port is not None:
            from turnout_workers.monitoring import fleet_metrics  # and aiohttp's server: a megabyte

            shared = fleet_metrics.FleetCollector(parts.fleet, parts.send, parts.ledger.keys, parts.ceilings.named)
            address = monitoring.metrics_host, monitoring.metrics_port
            serving = fleet_metrics.served(parts.metrics.registry, shared, *address)
            await self._open.enter_async_context(serving)

    async def _connected(self) -> None:
        """Read the fleet's state for the first time. Wait for Redis if it is away, as Celery does."""
        while True:
            with log_if_redis_is_away(logger.warning, "Redis can't be reached; trying again"):
                await self._parts.fleet.poll()
                return
            await asyncio.sleep(ERROR_PAUSE_S)

    async def _look_at_redis(self) -> None:
        """Log what this Redis lacks for production; the operator decides whether it matters."""
        with log_if_redis_is_away(
            logger.warning, "can't look at Redis's settings; `turnout doctor` can, as a user who may"
        ):
            for well, text in fitness.checks(await self._client.info()):
                if not well:
                    logger.error("Redis is not fit for production: %s", text)

    def _use(self, settings: Settings) -> None:
        """Put a configuration into effect. What can fail comes first, before any of it is visible.

        Unchanged accounts keep their connectors. A retired one finishes its calls and is then closed: with keys rotated
        every hour, there are thousands in a year.
        """
        current = self._connectors
        connectors = {config: current.get(config) or build(config, self._http) for config in accounts(settings)}
        by_endpoint = {endpoint.id: c for config, c in connectors.items() for endpoint in config.endpoints}
        endpoints = tuple(endpoint for config in connectors for endpoint in config.endpoints)
        # A new fleet wakes all parked jobs to look for room: don't make one if a quarter of an hour changed no price.
        same = settings is self.current.settings and endpoints == self._parts.fleet.snapshot.fleet.endpoints
        fleet = self._parts.fleet.snapshot.fleet if same else Fleet(endpoints)
        if retired := [connector for config, connector in current.items() if config not in connectors]:
            spawn(_close(retired, RETIRED_S), self._tasks)
        current.clear()  # and filled again in place, because the health checks use this dictionary
        current.update(connectors)
        self._parts.fleet.use(fleet)
        self.current.connectors = by_endpoint
        self.current.settings = settings

    def _work_in_background(self, parts: Parts) -> None:
        file, ledger, send = self.current.config, parts.ledger, parts.send
        store, fleet, rng = parts.store, parts.fleet, parts.rng
        also = (
            partial(eject_hanging, store, fleet, rng, file.router.failover_cooldown),
            BatchFeeding(ledger, send).round,
            OldAccounts(ledger, send, store, fleet).round,
        )
        keeping = Housekeeping(ledger, send, store, self.name, self.current, also, parts.metrics.recovered)
        checks = HealthChecks(self._connectors.values(), store, fleet, file.router.health_check_interval, rng)
        drain = SpoolDrain(parts.spool, ledger, send, store, self.current)
        self._keep_up(keeping.run_if_ours, housekeeping.EVERY_S, "housekeeping")
        following = partial(self._follow, Reload(self.current, self._use))
        self._keep_up(following, reload.EVERY_S, "the configuration")
        self._keep_up(drain.settle_all, spool.EVERY_S, "what was spooled")
        alive_s = min(ALIVE_EVERY_S, file.worker.lease_s / 3)
        self._keep_up(self._show_life, alive_s, "the sign of life")
        # These do their own waiting; all but the first end only by an error.
        self._keep_up(fleet.follow, 0.0, "the view of the fleet")
        self._keep_up(parts.heartbeat.run, ERROR_PAUSE_S, "the renewal of leases")
        self._keep_up(parts.watch.run, ERROR_PAUSE_S, "the watch over calls")
        self._keep_up(checks.run, ERROR_PAUSE_S, "the health check")
        self._keep_up(Webhooks(ledger, send, self.current).run, ERROR_PAUSE_S, "webhook delivery")

    async def _follow(self, file: Reload) -> None:
        """Apply a changed configuration, and announce it at once: others may refuse what is served here now."""
        before = self.current.settings
        await file.check()
        if self.current.settings is not before:
            await self._show_life()

    async def _show_life(self) -> None:
        """Report to Redis that this worker lives, or with no slots that it has ended: for `turnout status`, and so that
        a late renewal doesn't count as a death. All living workers take turns in reading the fleet's state."""
        version, results_s = self.current.settings.version, self.current.config.retention.results_s
        alive = self._parts.ledger.alive(self.name, version, self.slots, 3 * ALIVE_EVERY_S, results_s)
        self._parts.fleet.share_polls(await self._parts.send(alive))

    def _keep_up(self, work: Callable[[], Awaitable[object]], every_s: float, what: str) -> None:
        spawn(run_repeatedly(work, every_s, what), self._tasks)

    async def stop(self) -> None:
        await cancel_all(self._tasks)
        self.slots = 0
        with suppress(RedisError, OSError):  # TimeoutError too: then the worker is forgotten after a while
            async with asyncio.timeout(1):
                await self._show_life()
        await self._open.aclose()

    async def ended(self, job_id: str) -> TakenEnd | None:
        """How a job ended, if it has."""
        return await self._parts.send.uninterrupted(self._parts.ledger.take_end(job_id))

    def on_loop(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run this on the loop, for Celery's thread, the only caller."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)


async def _close(connectors: Iterable[CloudProviderBase], after_s: float = 0.0) -> None:
    """Close them after a while, or when this is cancelled. An error of one doesn't stop the others."""
    try:
        await asyncio.sleep(after_s)
    finally:
        closing = (connector.aclose() for connector in connectors)
        await uninterrupted(asyncio.gather(*closing, return_exceptions=True))
