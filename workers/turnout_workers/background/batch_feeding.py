"""Feeds detached batches (`turnout.batch.detached`): a chunk now and then, as far as each one's window allows."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from turnout.batch.chunk import chunk_jobs
from turnout.batch.record import KEPT_S, Record, State, read_if_known
from turnout.errors import Unreadable
from turnout.ledger import Coalescer, Intake, Ledger, Operation
from turnout.ledger.operations import nothing, texts

logger = logging.getLogger(__name__)

WINDOW = 5000
"""Most jobs of a batch that are queued or at work, as for `turnout run`."""
CHUNKS, CHUNKS_IN_ALL = 4, 20
"""Most chunks of a batch, and of all, in one round of housekeeping: work of half a second, in which no parked job is
woken."""
LOOK_S = 3600.0
"""Between two looks at all batches, to keep those that go on."""


@dataclass(slots=True)
class BatchFeeding:
    ledger: Ledger
    send: Coalescer
    _over: set[str] = field(default_factory=set, init=False)
    """Batches that this worker passes over: those that have nothing to be fed any more, which of many small ones are
    nearly all, and those that it can't read. Until the next look at all."""
    _looked_at: float = field(default=-LOOK_S, init=False)
    _last: str = field(default="", init=False)
    """The batch that was fed last: the next round goes on behind it."""

    async def round(self) -> None:
        """One bounded round, by whichever worker does the housekeeping. Cut off anywhere, it does no harm."""
        keys, now = self.ledger.keys, asyncio.get_running_loop().time()
        there = await self.send(Operation(("ZRANGE", keys.batches, 0, -1), texts))
        if look := now - self._looked_at >= LOOK_S:
            self._over.clear()
            self._looked_at = now
        self._over.intersection_update(there)
        behind = there.index(self._last) + 1 if self._last in there else 0
        ids = [id for id in there[behind:] + there[:behind] if id not in self._over]
        records = await self.send.all(*(read_if_known(keys, id) for id in ids))
        if look:
            await self._keep([record.id for record in records if record is not None and not record.ended])
        to_feed = [record for record in records if record is not None and record.to_feed]
        self._over.update(set(ids) - {record.id for record in to_feed})
        left = CHUNKS_IN_ALL
        for record in to_feed:
            if left and record.state is State.FEEDING:
                left = await self._feed(record, left)
                self._last = record.id

    async def _keep(self, ids: Sequence[str]) -> None:
        """Without its record, the jobs of a paused batch would begin, and those of any batch have no ceiling."""
        keys = self.ledger.keys
        kept = (key(id) for id in ids for key in (keys.batch, keys.batch_lines, keys.batch_input))
        await self.send.all(*(Operation(("EXPIRE", key, KEPT_S), nothing) for key in kept))

    async def _feed(self, record: Record | None, left: int) -> int:
        """Returns how many chunks are left for other batches: none while Redis is short of memory."""
        keys, send, ledger = self.ledger.keys, self.send, self.ledger
        for _ in range(min(left, CHUNKS)):
            if record is None or record.state is not State.FEEDING or record.under_way >= WINDOW:
                break
            id = record.id
            chunk = await send(Operation(("LINDEX", keys.batch_input(id), 0), lambda reply: reply))
            if chunk is None:
                break
            if record.max_cost_microusd is not None:
                await send(ledger.set_ceiling(id, record.max_cost_microusd))
            try:
                jobs = chunk_jobs(chunk, id, ledger.keyring)
            except (Unreadable, ValueError) as error:  # sealed, or of another release
                logger.error("batch %s is left to workers that can read it: %s", id, error)
                self._over.add(id)
                break
            answers = await send.all(*(ledger.enqueue(job, detached=True) for job in jobs))
            outcomes = [answer.outcome for answer in answers]
            if Intake.FULL in outcomes:
                return 0  # the same chunk again, later
            accepted = len(jobs) - outcomes.count(Intake.CANCELLED)
            await send(ledger.fed(id, record.chunks_fed, accepted, outcomes.count(Intake.EXPIRED)))
            left -= 1
            record = await send(read_if_known(keys, id))
        return left
