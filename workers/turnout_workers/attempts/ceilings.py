"""The accounts that a job's cost counts against: its own, its batch's, its tenant's, the provider's and the total."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import lru_cache

from turnout.request import MICROUSD_PER_USD
from turnout_workers.attempts.job import HeldJob
from turnout_workers.config.current_config import CurrentConfig
from turnout_workers.config.tables import CeilingTable
from turnout_workers.state.store import Ceiling

DAY_S = 86_400
MAX_REMEMBERED = 1000
"""Accounts whose names are remembered."""
TOTAL = Ceiling("total", None)
"""It has no ceiling: it is the ledger of all money."""
ANY_TENANT = "*"
NO_CEILING = CeilingTable()
OWN = ("job:", "batch:")
"""How the names of accounts begin that aren't counted by day or month."""
PERIODIC = re.compile(r"(?:total|tenant:.+|provider:.+)@(\d{4}-\d\d(?:-\d\d)?)")
"""The names of accounts that are counted by day or month."""


class ConfiguredCeilings:
    """The ceilings of `turnout.toml` and of the jobs. Periods are calendar days and months in UTC."""

    def __init__(self, current: CurrentConfig, now: Callable[[], float]) -> None:
        self._current = current
        self._now = now

    def of_job(self, job: HeldJob) -> tuple[Ceiling, ...]:
        """All but the provider's. A batch keeps its limit with its account.

        The total and each provider's cost are counted by day and month even without a ceiling, so that one that is set
        later knows what was spent before. There may be too many tenants for that.
        """
        constraints, configured = job.request.constraints, self._current.config.ceilings
        found = [TOTAL, *self._periods("total", configured.total)]
        if constraints.max_cost_microusd is not None:
            found.append(Ceiling(f"job:{job.id}", constraints.max_cost_microusd))
        if job.claim.batch is not None:
            found.append(Ceiling(f"batch:{job.claim.batch}", None))
        if constraints.tenant is not None:
            tenants = configured.tenants
            table = tenants.get(constraints.tenant, tenants.get(ANY_TENANT, NO_CEILING))
            found += _limited(self._periods(f"tenant:{constraints.tenant}", table))
        return tuple(found)

    def named(self) -> tuple[Ceiling, ...]:
        """The ceilings that the configuration names, for the present day and month."""
        configured = self._current.config.ceilings
        found = list(self._periods("total", configured.total))
        for kind, tables in (("tenant", configured.tenants), ("provider", configured.providers)):
            for name in tables.keys() - {ANY_TENANT}:
                found += self._periods(f"{kind}:{name}", tables[name])
        return tuple(_limited(found))

    def of_provider(self, provider: str) -> tuple[Ceiling, ...]:
        providers = self._current.config.ceilings.providers
        return self._periods(f"provider:{provider}", providers.get(provider, NO_CEILING))

    def _periods(self, account: str, table: CeilingTable) -> tuple[Ceiling, ...]:
        return _periods_of(account, int(self._now() // DAY_S), table.per_day_usd, table.per_month_usd)


def _limited(ceilings: Iterable[Ceiling]) -> list[Ceiling]:
    return [ceiling for ceiling in ceilings if ceiling.limit_microusd is not None]


def _microusd(usd: float | None) -> int | None:
    return None if usd is None else round(usd * MICROUSD_PER_USD)


@lru_cache(MAX_REMEMBERED)
def _periods_of(
    account: str, day: int, per_day_usd: float | None, per_month_usd: float | None
) -> tuple[Ceiling, Ceiling]:
    """The ceilings of a day, counted since 1970, and of its month. Remembered, because all jobs share them."""
    date = datetime.fromtimestamp(day * DAY_S, UTC)
    return (
        Ceiling(f"{account}@{date:%Y-%m-%d}", _microusd(per_day_usd)),
        Ceiling(f"{account}@{date:%Y-%m}", _microusd(per_month_usd)),
    )
