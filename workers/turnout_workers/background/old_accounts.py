"""Deletes accounts that are no longer needed: of days and months long over, of which a fleet of many tenants has many;
of detached batches that are gone, which apps submit by the thousand; and of jobs whose workers died before they could
close them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

from turnout.batch.record import DETACHED
from turnout.ledger import Coalescer, Ledger, Operation
from turnout.ledger.operations import nothing, texts
from turnout_workers.attempts.ceilings import PERIODIC
from turnout_workers.state.snapshot import SnapshotPoller
from turnout_workers.state.store import WorkersStore

EVERY_S = 3600.0
PAGE = 1000
KEPT = timedelta(days=62)
"""From the first day of a period, so that a month's account stays for another month."""


@dataclass(slots=True)
class OldAccounts:
    """A part of each round of housekeeping."""

    ledger: Ledger
    send: Coalescer
    store: WorkersStore
    fleet: SnapshotPoller
    _began_at: float = field(default=0.0, init=False)
    _cursor: int = field(default=0, init=False)
    """Of the scan through all accounts; 0: it is finished."""

    async def round(self) -> None:
        """Scan one page of accounts. A scan of all begins every `EVERY_S`."""
        keys, now, over = self.ledger.keys, self.fleet.now(), set[str]()
        ids, jobs = set[str](), set[str]()
        if not self._cursor:
            if 0 <= now - self._began_at < EVERY_S:
                return
            self._began_at = now
            ids.update(await self.send(Operation(("ZRANGE", keys.batches, 0, -1), texts)))
        today = datetime.fromtimestamp(now, UTC).date()
        # There may be hundreds of thousands; each is found once for each of its columns.
        scan = Operation(("HSCAN", keys.money, self._cursor, "COUNT", PAGE), lambda reply: reply)
        self._cursor, columns = await self.send(scan)
        for column in texts(columns):
            account = column.rpartition("|")[0]
            kind, _, name = account.partition(":")
            if is_over(account, today):
                over.add(account)
            elif kind == "batch" and name.startswith(DETACHED):  # `turnout run` needs its accounts longer
                ids.add(name)
            elif kind == "job":
                jobs.add(name)
        await self.send.all(*map(self.ledger.close_account, sorted(jobs)))
        there = await self.send.all(*(Operation(("EXISTS", keys.batch(id)), bool) for id in ids))
        gone = [id for id, is_there in zip(ids, there, strict=True) if not is_there]
        names = sorted(over.union(f"batch:{id}" for id in gone))
        for first in range(0, len(names), PAGE):
            await self.store.forget(names[first : first + PAGE])
        if gone:
            await self.send(Operation(("ZREM", keys.batches, *gone), nothing))


def is_over(account: str, today: date) -> bool:
    """Whether it belongs to a day or a month that is long over."""
    found = PERIODIC.fullmatch(account)
    return found is not None and found[1] < (today - KEPT).isoformat()
