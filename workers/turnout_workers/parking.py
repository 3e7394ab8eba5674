"""Jobs that nothing has room for: which wait for the same, and how those behind the first get their turn.

Parked jobs stand in lines in the ledger. The first of a line looks for room when its time has come. One that is let
go brings another, and one more when its call has ended; so a line is woken as fast as room appears, and no faster,
and those behind cost nothing while they wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict

from redis.exceptions import RedisError

from turnout.ledger import Claimed, Coalescer, Ledger
from turnout.request import CONTRACT_VERSION, Lane
from turnout_workers.routing.decision import Decision

logger = logging.getLogger(__name__)

HASTENED = 10_000
"""Lines that are told at once of a change."""
REMEMBERED = 1000
"""Lines whose wait a worker knows of."""


class Parking:
    """What one worker knows of the lines, and does for them."""

    def __init__(self, ledger: Ledger, call: Coalescer) -> None:
        self._ledger = ledger
        self._call = call
        self.any_parked = False
        """As of the last claim: otherwise none need be brought."""
        self.in_place: set[str] = set()
        """Lines of which one waits here in its slot, so that it has the room in the moment that it appears. Others of
        them would take slots from those that have somewhere to go."""
        self._until: dict[str, float] = {}
        self._bringing: set[asyncio.Task[None]] = set()

    def noted(self, line: str, until: float, now: float) -> None:
        """A job of this line was refused, and there is no room before `until`."""
        if len(self._until) >= REMEMBERED:
            self._until = {other: at for other, at in self._until.items() if at > now}
        self._until[line] = until
        self.any_parked = True

    def left_s(self, decision: Decision, claim: Claimed, now: float) -> float:
        """How long the line of a fresh job waits yet: it is to stand behind those that were there first."""
        return self._until.get(line_of(decision, claim.tenant, claim.batch), 0.0) - now if self._until else 0.0

    @contextlib.contextmanager
    def waiting_in_place(self, line: str) -> Iterator[None]:
        """`line`: '' where nothing is parked, and any number may wait."""
        if not line:
            yield
            return
        self.in_place.add(line)
        try:
            yield
        finally:
            self.in_place.discard(line)

    def bring(self, line: str, lane: Lane, count: int) -> None:
        """Wake the next of the line, in the background."""
        task = asyncio.create_task(self._bring(line, lane, count))
        self._bringing.add(task)
        task.add_done_callback(self._bringing.discard)

    async def _bring(self, line: str, lane: Lane, count: int) -> None:
        try:
            following = await self._call(self._ledger.following(line, count))
            await self._call.all(*(self._ledger.wake(job_id, lane) for job_id in reversed(following)))
        except (RedisError, OSError) as error:
            logger.debug("parked jobs are not brought now, and wait for their line's time: %s", error)

    async def hasten(self) -> None:
        """What jobs wait for may have come: the first of every line looks now."""
        self._until.clear()
        await self._call(self._ledger.hasten(HASTENED))


def line_of(decision: Decision, tenant: str | None, batch: str | None) -> str:
    """The line of all jobs for which there is room at the same time: of equal wishes and like size."""
    wish = decision.job
    same = (
        CONTRACT_VERSION,
        tenant,
        batch,
        wish.lane,
        asdict(wish.requirements),
        wish.strategy,
        wish.order,
        wish.max_latency_s,
        wish.max_cost_microusd,
        wish.input_tokens.bit_length(),
        (wish.output_tokens or 0).bit_length(),
        decision.tried,
    )
    text = json.dumps(same, default=sorted)
    return hashlib.blake2s(text.encode(), digest_size=8).hexdigest()
