"""Free questions to providers: is the key good, do you answer? They bring back what was disabled."""

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
"""Reasons for disabling that a good answer to a check ends. No credit, or no such model, shows in real calls only …"""
REFUSED = (FailureKind.UNAUTHORIZED, FailureKind.BILLING)
"""Failures of a check that disable endpoints. Others don't say that real calls would fail: a server without a list of
models, or a key that may not see it, can serve them well."""
ABSENT = (FailureKind.MODEL_NOT_FOUND, FailureKind.FORBIDDEN, FailureKind.MALFORMED)
"""Failures of a check which say that there is nothing to be asked."""
CHANCE_S = 300.0
"""… so one is let through this often, as long as the provider answers its checks well."""
LOOK_S = 1.0
"""How often it is seen whether a provider is new."""
LONGEST_S = 10.0
"""Of one check, for the next round waits for all of them."""


@dataclass(slots=True)
class HealthChecks:
    """Asks every provider at the start, and when one is new, perhaps with a better key; then from time to time, one
    process for all that share the store."""

    connectors: Collection[CloudProviderBase]
    store: FleetStore
    fleet: SnapshotPoller
    interval_s: float
    rng: random.Random

    async def run(self) -> None:
        clock, again_at, asked = asyncio.get_running_loop().time, 0.0, list[CloudProviderBase]()
        while True:
            known, asked = asked, list(self.connectors)
            if clock() >= again_at:
                known = [connector for connector in known if not await self._is_our_turn(connector)]
                again_at = clock() + self.interval_s * self.rng.uniform(1.0, 1.1)
            await asyncio.gather(*(self.check(connector) for connector in asked if connector not in known))
            await asyncio.sleep(min(LOOK_S, max(0.0, again_at - clock())))

    async def _is_our_turn(self, connector: CloudProviderBase) -> bool:
        account = next((endpoint.account_id for endpoint in connector.endpoints), connector.name)
        with log_if_redis_is_away(
            logger.debug, "%s is not asked for its health", connector.name
        ):  # nor could anything be told
            return await self.store.take_turn(f"health:{account}", self.interval_s)
        return False

    async def check_all(self) -> dict[str, Failure | None]:
        """Check every provider now: by name, what was wrong, or None. Of several keys, one that is refused counts."""
        connectors = list(self.connectors)
        told: dict[str, Failure | None] = {}
        for connector, failure in zip(connectors, await asyncio.gather(*map(self.check, connectors)), strict=True):
            told[connector.name] = told.get(connector.name) or failure
        return told

    async def check(self, connector: CloudProviderBase) -> Failure | None:
        """Disable endpoints on a bad key, restore them on a good answer. An outage is left to the calls to notice."""
        endpoint_ids = [endpoint.id for endpoint in connector.endpoints]
        failure: Failure | None = None
        try:
            async with asyncio.timeout(LONGEST_S):
                await connector.check_health()
        except ProviderError as error:
            failure = error.failure
            if failure.kind in REFUSED:
                await self._tell(self.store.mark("disabled", endpoint_ids, str(error)))
            if failure.kind not in ABSENT:
                return failure
        except TimeoutError:
            return Failure(FailureKind.TIMED_OUT, f"no answer to its health check in {LONGEST_S:g} s")
        except Exception as error:
            return broken("health check", connector.name, error)
        if cured := [id for id in endpoint_ids if self._is_cured(id, certain=failure is None)]:
            logger.info("%s may be called again", ", ".join(cured))
            await self._tell(self.store.mark("restored", cured))
        return failure

    def _is_cured(self, endpoint_id: str, certain: bool) -> bool:
        """Whether to let calls through again. certain: the check was answered well."""
        snapshot = self.fleet.snapshot
        view = snapshot.by_id.get(endpoint_id)
        if view is None or view.health.disabled is None or view.health.isolated is not None:
            return False  # an operator's word stands
        chance = snapshot.at - view.health.disabled_at >= CHANCE_S
        return chance or (certain and view.health.disabled.startswith(CURABLE))

    async def _tell(self, change: Awaitable[None]) -> None:
        with log_if_redis_is_away(logger.warning, "a health check's outcome can't be shared now"):
            await change
