"""The executable specification of `RedisFleetStore`: what a router's own store does, and what only workers ask for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from turnout_workers.routing.health import Counters
from turnout_workers.state.memory_store import MemoryFleetStore
from turnout_workers.state.store import (
    CEILING,
    Account,
    Admission,
    Ask,
    Bid,
    Ceiling,
    Fenced,
    Granted,
    Report,
    ms,
)
from turnout_workers.state.usage import ASK_AGAIN_MS, Obstacle

NOTHING = Account()


@dataclass(eq=False)
class SpecifiedStore(MemoryFleetStore):
    """With fences, money, and leases that are renewed."""

    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The ledger's records by id, for fenced admissions."""
    ceilings: dict[str, int] = field(default_factory=dict)
    """The ledger's, of batches, by account."""
    paused: set[str] = field(default_factory=set)
    """The ledger's batches that are paused."""
    _money: dict[str, Account] = field(default_factory=dict, init=False)
    _reserved: dict[str, tuple[int, tuple[str, ...]]] = field(default_factory=dict, init=False)
    """By lease: how much, in which accounts."""

    async def admit(self, ask: Ask) -> Admission:
        job: dict[str, Any] = self.jobs.get(ask.fence.job_id, {}) if ask.fence else {}
        if ask.fence and (job.get("token") != ask.fence.token or job.get("state") not in ("leased", "calling")):
            return Fenced()
        if held := self._lease(ask.lease_id, self._now()):  # a repeated admission, its first answer was lost
            granted = Granted(ask.lease_id, held.endpoint_id, held.at / 1000, held.probe > 0)
            return Fenced() if held.expired_at is not None else granted
        admission = await super().admit(ask)
        if isinstance(admission, Granted):
            if ask.fence:
                job["state"] = "calling"
                job.setdefault("routed", []).append(admission.endpoint_id)
            bid = next(bid for bid in ask.bids if bid.endpoint_id == admission.endpoint_id)
            accounts = tuple(ceiling.account for ceiling in (*ask.ceilings, *bid.ceilings))
            for name in accounts:
                self._money.setdefault(name, NOTHING)
            self._book(accounts, reserved=bid.cost_microusd or 0)
            self._reserved[ask.lease_id] = bid.cost_microusd or 0, accounts
        return admission

    def _obstacles(self, bid: Bid, ask: Ask, now: int) -> Iterator[Obstacle]:
        if ask.fence is not None and ask.fence.batch in self.paused:
            yield Obstacle(None, "the batch is paused")
        yield from super()._obstacles(bid, ask, now)
        yield from self._money_obstacles((*ask.ceilings, *bid.ceilings), bid.cost_microusd, now)

    def _money_obstacles(self, ceilings: tuple[Ceiling, ...], cost: int | None, now: int) -> Iterator[Obstacle]:
        for ceiling in ceilings:
            account = self._money.get(ceiling.account, NOTHING)
            certain = math.inf if cost is None else account.spent + account.unsure + cost
            limit = ceiling.limit_microusd
            # A batch has the ceiling that its producer has set. Other accounts are none of a producer's business.
            if limit is None and ceiling.account.startswith("batch:"):
                limit = self.ceilings.get(ceiling.account)
            if limit is None or certain + account.reserved <= limit:
                continue
            # What only reservations stand against may have room again once those calls are paid.
            yield Obstacle(None if certain > limit else now + ASK_AGAIN_MS, CEILING + ceiling.account)

    def _book(self, accounts: Sequence[str], **amounts: int) -> None:
        for name in [name for name in accounts if name in self._money]:  # one that was forgotten stays so
            account = self._money[name]
            sums = {column: getattr(account, column) + amount for column, amount in amounts.items()}
            self._money[name] = replace(account, **sums)

    async def report(self, report: Report) -> Counters:
        lease = self._lease(report.lease_id, self._now())
        if lease is not None and lease.endpoint_id == report.endpoint_id:
            cost, accounts = self._reserved[report.lease_id]
            self._book(accounts, **{"reserved" if lease.expired_at is None else "unsure": -cost})
            self._book(accounts, spent=report.cost_microusd, unsure=report.unsure_microusd)
        return await super().report(report)

    async def renew(self, lease_ids: Sequence[str], ttl_s: float) -> None:
        now = self._now()
        for lease_id in lease_ids:
            lease = self._lease(lease_id, now)
            if lease is not None and lease.expired_at is None and lease.ends_at > now:
                lease.ends_at = now + ms(ttl_s)
                known = self._endpoints[lease.endpoint_id]
                if lease.probe > 0 and lease.probe == known.probe:
                    known.probe_until = now + ms(ttl_s)

    async def expire(self, limit: int = 1000) -> int:
        held = [(id, lease) for id, lease in self._leases.items() if lease.expired_at is None]
        ended = await super().expire(limit)
        for lease_id, lease in held:
            if lease.expired_at is not None:
                cost, accounts = self._reserved[lease_id]
                self._book(accounts, reserved=-cost, unsure=cost)
        return ended

    async def mark_duplicate(self, accounts: Sequence[str], cost_microusd: int) -> None:
        self._book(accounts, duplicate=cost_microusd)

    async def accounts(self, names: Sequence[str]) -> Mapping[str, Account]:
        return {name: self._money.get(name, NOTHING) for name in names}

    async def forget(self, accounts: Sequence[str]) -> None:
        for name in accounts:
            self._money.pop(name, None)
            self.ceilings.pop(name, None)
