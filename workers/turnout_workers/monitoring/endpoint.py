"""`GET /metrics` of one worker process, served on its own loop."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from turnout_workers.monitoring.fleet_metrics import FleetCollector

logger = logging.getLogger(__name__)


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
