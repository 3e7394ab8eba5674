"""Free health checks of providers: does it answer, and is the key good? They bring back disabled endpoints."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Collection
from dataclasses import dataclass

from turnout_workers.background.tasks import log_if_redis_is_away
from turnout_workers.providers.base import CloudProviderBase
from turnout_workers.providers.errors import ProviderError, broken
from turnout_workers.routing.failure import Failure, FailureKind
from turnout_workers.state.snapshot import SnapshotPoller
from turnout_workers.state.store import FleetStore

logger = logging.getLogger(__name__)

CURABLE = (FailureKind.UNAUTHORIZED.value, FailureKind.FORBIDDEN.value)
"""Reasons for disabling that a successful check clears. Missing credit or a missing model shows only in real calls; for
those see `CHANCE_S`."""
REFUSED = (FailureKind.UNAUTHORIZED, FailureKind.BILLING)
"""Failures of a check that disable endpoints. Others don't mean that real calls would fail: a server may have no list
of models, or a key no right to read it."""
ABSENT = (FailureKind.MODEL_NOT_FOUND, FailureKind.FORBIDDEN, FailureKind.MALFORMED)
"""Failures of a check which only mean that there is nothing to check."""
CHANCE_S = 300.0
"""How often an endpoint that was disabled for another reason gets one real call, while its checks succeed."""
LOOK_S = 1.0
"""How often new providers are looked for."""
TIMEOUT_S = 10.0
"""Timeout of one check: the next round waits for all of them."""


@dataclass(slots=True)
class HealthChecks:
    """Checks every provider at the start, and a new one, perhaps with a better key, at once. After that, one of the
    processes that share the store checks at intervals."""

    connectors: Collection[CloudProviderBase]
    store: FleetStore
    fleet: SnapshotPoller
    interval_s: float
    rng: random.Random

    async def run(self) -> None:
        clock, next_at, current = asyncio.get_running_loop().time, 0.0, list[CloudProviderBase]()
        while True:
            skipped, current = current, list(self.connectors)
            if clock() >= next_at:
                skipped = [connector for connector in skipped if not await self._is_our_turn(connector)]
                next_at = clock() + self.interval_s * self.rng.uniform(1.0, 1.1)
            await asyncio.gather(*(self.check(connector) for connector in current if connector not in skipped))
            await asyncio.sleep(min(LOOK_S, max(0.0, next_at - clock())))

    async def _is_our_turn(self, connector: CloudProviderBase) -> bool:
        account = next((endpoint.account_id for endpoint in connector.endpoints), connector.name)
        # Without Redis, its outcome couldn't be shared either.
        with log_if_redis_is_away(logger.debug, "no health check of %s now", connector.name):
            return await self.store.claim_work(f"health:{account}", self.interval_s)
        return False

    async def check_all(self) -> dict[str, Failure | None]:
        """Check every provider now. Returns by name what was wrong, or None; one bad key of several counts."""
        connectors = list(self.connectors)
        failures: dict[str, Failure | None] = {}
        for connector, failure in zip(connectors, await asyncio.gather(*map(self.check, connectors)), strict=True):
            failures[connector.name] = failures.get(connector.name) or failure
        return failures

    async def check(self, connector: CloudProviderBase) -> Failure | None:
        """Disable endpoints if the key is bad, restore them if the check succeeds. Outages are left for the calls to
        notice."""
        endpoint_ids = [endpoint.id for endpoint in connector.endpoints]
        failure: Failure | None = None
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await connector.check_health()
        except ProviderError as error:
            failure = error.failure
            if failure.kind in REFUSED:
                await self._share(self.store.mark("disabled", endpoint_ids, str(error)))
            if failure.kind not in ABSENT:
                return failure
        except TimeoutError:
            return Failure(FailureKind.TIMED_OUT, f"no answer to its health check in {TIMEOUT_S:g} s")
        except Exception as error:
            return broken("health check", connector.name, error)
        if cured := [id for id in endpoint_ids if self._is_cured(id, certain=failure is None)]:
            logger.info("%s may be called again", ", ".join(cured))
            await self._share(self.store.mark("restored", cured))
        return failure

    def _is_cured(self, endpoint_id: str, certain: bool) -> bool:
        """Whether to let calls through again. certain: the check succeeded."""
        snapshot = self.fleet.snapshot
        view = snapshot.by_id.get(endpoint_id)
        if view is None or view.health.disabled is None or view.health.isolated is not None:
            return False  # an operator's decision stands
        chance = snapshot.at - view.health.disabled_at >= CHANCE_S
        return chance or (certain and view.health.disabled.startswith(CURABLE))

    async def _share(self, change: Awaitable[None]) -> None:
        with log_if_redis_is_away(logger.warning, "a health check's outcome can't be shared now"):
            await change
