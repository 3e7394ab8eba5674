"""Free questions to providers: is the key good, do you answer? They bring back what was disabled."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Collection

from redis.exceptions import RedisError

from turnout_workers.providers.base import CloudProviderBase
from turnout_workers.providers.errors import ProviderError
from turnout_workers.routing.failover import RULES
from turnout_workers.routing.failure import FailureKind
from turnout_workers.state.snapshot import SnapshotPoller
from turnout_workers.state.store import FleetStore

logger = logging.getLogger(__name__)

CURABLE = (FailureKind.UNAUTHORIZED.value, FailureKind.FORBIDDEN.value)
"""Reasons of which a good answer is the end. Credit and missing models show in real calls only."""


class HealthChecks:
    """Asks every provider from time to time; each worker at moments of its own."""

    def __init__(
        self,
        connectors: Collection[CloudProviderBase],
        store: FleetStore,
        fleet: SnapshotPoller,
        interval_s: float,
        rng: random.Random,
    ) -> None:
        self._connectors = connectors
        self._store = store
        self._fleet = fleet
        self._interval_s = interval_s
        self._rng = rng

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s * self._rng.uniform(0.5, 1.5))
            await asyncio.gather(*(self.check(connector) for connector in self._connectors))

    async def check(self, connector: CloudProviderBase) -> None:
        """Disable on a bad key, restore on a good answer. An outage is the breaker's business, not ours."""
        endpoint_ids = [endpoint.id for endpoint in connector.endpoints]
        try:
            await connector.check_health()
        except ProviderError as error:
            if RULES[error.failure.kind].disables:
                await self._tell(self._store.disable(endpoint_ids, str(error)))
            return
        views = (self._fleet.snapshot.by_id.get(endpoint_id) for endpoint_id in endpoint_ids)
        cured = [v.endpoint.id for v in views if v and (v.health.disabled or "").startswith(CURABLE)]
        if cured:
            logger.info("%s answers well again", ", ".join(cured))
            await self._tell(self._store.restore(cured))

    async def _tell(self, change: object) -> None:
        try:
            await change  # type: ignore[misc]
        except (RedisError, OSError) as error:
            logger.warning("a health check's outcome can't be shared now: %s", error)
