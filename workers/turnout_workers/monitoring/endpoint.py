"""`GET /metrics` of one worker process, served on its own loop."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST
from redis.exceptions import RedisError

from turnout.ledger import Keys
from turnout.ledger.script import Coalescer
from turnout_workers.monitoring import backlog
from turnout_workers.monitoring.metrics import FleetCollector, Metrics
from turnout_workers.state.snapshot import SnapshotPoller

logger = logging.getLogger(__name__)


@asynccontextmanager
async def served(
    metrics: Metrics, fleet: SnapshotPoller, call: Coalescer, keys: Keys, host: str, port: int
) -> AsyncIterator[int]:
    """Serve while the block runs; gives the port. A port that is taken is an error in the log, and no more:
    jobs matter more than their metrics."""
    collector = FleetCollector(fleet)
    metrics.registry.register(collector)

    async def scrape(_: web.BaseRequest) -> web.StreamResponse:
        try:
            collector.queues = backlog.told(await call.all(*backlog.reads(keys)), fleet.now())
        except (RedisError, OSError) as error:
            collector.queues = {}
            logger.warning("metrics without the queues: %s", error)
        return web.Response(body=metrics.exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get("/metrics", scrape)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        logger.error("no metrics of this worker: %s:%d can't be listened on (%s)", host, port, error)
        yield 0
    else:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
