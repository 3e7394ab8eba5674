"""Accounts of days and months that are long over, which a fleet of many tenants has many of, are dropped."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

import redis.asyncio

from turnout_workers.state.snapshot import SnapshotPoller
from turnout_workers.state.store import FleetStore

EVERY_S = 3600.0
AT_ONCE = 1000
KEPT = timedelta(days=62)
"""From the first day of a period on, so that a month, too, stays for another one."""
PERIODIC = ("total@", "tenant:", "provider:")
"""How the names of all these begin, and of no job's or batch's; see `attempts/ceilings.py`."""


@dataclass(slots=True)
class OldAccounts:
    """A part of each round of housekeeping."""

    client: redis.asyncio.Redis
    key: str
    """Of the money."""
    store: FleetStore
    fleet: SnapshotPoller
    _looked_at: float = field(default=0.0, init=False)

    async def round(self) -> None:
        """Look through all of them, now and then."""
        now = self.fleet.now()
        if 0 <= now - self._looked_at < EVERY_S:
            return
        self._looked_at = now
        today = datetime.fromtimestamp(now, UTC).date()
        found = self.client.hscan_iter(self.key, match="*@*|*", count=AT_ONCE)
        # Of the others, which may be hundreds of thousands, nothing is kept.
        names = {name async for column, _ in found if is_over(name := column.decode().rpartition("|")[0], today)}
        over = sorted(names)
        for first in range(0, len(over), AT_ONCE):
            await self.store.forget(over[first : first + AT_ONCE])


def is_over(account: str, today: date) -> bool:
    """Whether it is of a day or a month that nobody asks for any more."""
    period = account.rpartition("@")[2]
    try:
        began = date.fromisoformat(period if len(period) > len("2030-01") else f"{period}-01")
    except ValueError:
        return False
    return account.startswith(PERIODIC) and began < today - KEPT
