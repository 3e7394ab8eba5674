"""Renews the leases of this worker's jobs and calls, and aborts the work in time if it can't.

A lease must never outlive the certainty that it is ours. Both kinds are renewed every third of their lifetime,
in one round trip for all. A job that the ledger says is no longer ours is aborted at once. A reply that is lost with
its connection aborts nothing: the next renewal uses another connection. When Redis can't be reached, everything is
aborted before the leases can run out, so that no other worker takes over a job for which a call is still running here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from redis.exceptions import RedisError

from turnout.ledger import Coalescer, Ledger
from turnout_workers.state.store import WorkersStore

logger = logging.getLogger(__name__)

MARGIN = 0.1
"""A lease counts as lost this share of its length before it ends, to allow for the network."""
PAGE = 500
"""Most jobs renewed in one command."""


@dataclass(slots=True, eq=False)
class Hold:
    """One claimed job of this worker, and the calls being made for it. It is renewed while its block runs."""

    job_id: str
    token: int
    task: asyncio.Task[Any]
    valid_until: float
    """On the loop's clock: until then no other worker can have the job."""
    held: set[Hold]
    """Everything that this worker renews."""
    leases: list[str] = field(default_factory=list)
    """Leases of the calls under way for it."""
    lost: bool = False
    ending: bool = False
    """The command that ends this hold is on its way to the ledger. A renewal may then find that the job is no longer
    ours because we have ended it. The reply to that command shows whether another worker had it by then."""

    def __enter__(self) -> Self:
        self.held.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.held.discard(self)

    def lose(self) -> None:
        """Abort the work on a job that another worker may have now."""
        self.lost = True
        self.task.cancel()


@dataclass(slots=True, eq=False)
class Heartbeat:
    """Renews all holds, from one background task."""

    ledger: Ledger
    send: Coalescer
    store: WorkersStore
    ttl_s: float
    clock: Callable[[], float]
    _held: set[Hold] = field(default_factory=set, init=False)

    def __len__(self) -> int:
        return len(self._held)

    def holding(self, job_id: str, token: int, claimed_at: float) -> Hold:
        """Keep the job claimed while the block runs in this task. `claimed_at`: before the claim was sent."""
        task = asyncio.current_task()
        assert task is not None
        return Hold(job_id, token, task, claimed_at + self.ttl_s * (1 - MARGIN), self._held)

    async def run(self) -> None:
        """Renew for ever. The next round begins a third of a lease after a successful round began, and a sixth after a
        failed one. So a lease of 30 s is renewed at 10 s, or at 15 or 20 s if that fails; what can't be renewed is
        aborted at 25 s at the latest."""
        while True:
            began_at = self.clock()
            held = [hold for hold in self._held if not hold.lost]
            renewed = not held or await self._round(held)
            next_at = began_at + self.ttl_s / (3 if renewed else 6)
            self.lose_expired(next_at)
            await asyncio.sleep(max(0.0, next_at - self.clock()))

    async def _round(self, held: Sequence[Hold]) -> bool:
        """Returns whether it succeeded. It takes a sixth of a lease at most, whatever Redis does: a silent connection
        is given up only later, and holds back what was sent on it, but not what follows."""
        renewing = asyncio.create_task(self._renew(held))
        # After the timeout nothing awaits it, and asyncio would complain about an error that was never retrieved.
        renewing.add_done_callback(lambda late: late.cancelled() or late.exception())
        try:
            async with asyncio.timeout(self.ttl_s / 6):
                await asyncio.shield(renewing)
        except (RedisError, OSError, TimeoutError) as error:
            logger.warning("can't renew %d leases: %s", len(held), str(error) or type(error).__name__)
            return False
        return True

    async def _renew(self, held: Sequence[Hold]) -> None:
        """Renew page by page: a script blocks Redis, and a command of thousands of keys takes megabytes. A reply counts
        however late it comes, as of the time of sending."""
        sent_at, renewed = self.clock(), list[bool]()
        for start in range(0, len(held), PAGE):
            page = held[start : start + PAGE]
            leases = [lease_id for hold in page for lease_id in hold.leases]
            renewal = self.send(self.ledger.renew([(hold.job_id, hold.token) for hold in page], self.ttl_s))
            ours, _ = await asyncio.gather(renewal, self.store.renew(leases, self.ttl_s))
            renewed += ours
        for hold, still_ours in zip(held, renewed, strict=True):
            if still_ours:
                hold.valid_until = max(hold.valid_until, sent_at + self.ttl_s * (1 - MARGIN))
            elif hold in self._held and not hold.lost and not hold.ending:
                logger.warning("lost the lease of job %s; its call is aborted", hold.job_id, extra={"job": hold.job_id})
                hold.lose()

    def lose_expired(self, next_at: float) -> None:
        """Abort jobs whose leases may run out before a round that begins at `next_at` has renewed them."""
        ends_at = next_at + self.ttl_s / 6
        late = [hold for hold in self._held if not hold.lost and hold.valid_until <= ends_at]
        if late:
            logger.warning("the leases of %d jobs can't be renewed in time; their calls are aborted", len(late))
        for hold in late:
            hold.lose()
