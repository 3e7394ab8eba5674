"""Feeds detached batches (`turnout.batch.detached`) chunk by chunk, as far as each one's window allows."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from turnout.batch.chunk import chunk_jobs
from turnout.batch.record import KEPT_S, Record, State, read_or_log
from turnout.errors import Unreadable
from turnout.ledger import Coalescer, Intake, Ledger, Operation
from turnout.ledger.operations import nothing, texts

logger = logging.getLogger(__name__)

WINDOW = 5000
"""Most jobs of a batch that may be queued or at work, as for `turnout run`."""
MAX_CHUNKS, MAX_CHUNKS_IN_ALL = 4, 20
"""Most chunks of one batch, and of all batches, in one round of housekeeping. That takes half a second, in which no
parked job is woken."""
RENEW_S = 3600.0
"""How often all batches are looked at, to extend the life of those that go on."""


@dataclass(slots=True)
class BatchFeeding:
    ledger: Ledger
    send: Coalescer
    _skipped: set[str] = field(default_factory=set, init=False)
    """Batches to skip until all are looked at again: those with nothing left to feed, which are nearly all when there
    are many small ones, and those that this worker can't read."""
    _renewed_at: float = field(default=-RENEW_S, init=False)
    _last: str = field(default="", init=False)
    """The batch fed last: the next round continues after it."""

    async def round(self) -> None:
        """One bounded round, in the worker that does the housekeeping. It may be cut off anywhere without harm."""
        keys, now = self.ledger.keys, asyncio.get_running_loop().time()
        there = await self.send(Operation(("ZRANGE", keys.batches, 0, -1), texts))
        if renew := now - self._renewed_at >= RENEW_S:
            self._skipped.clear()
            self._renewed_at = now
        self._skipped.intersection_update(there)
        start = there.index(self._last) + 1 if self._last in there else 0
        ids = [id for id in there[start:] + there[:start] if id not in self._skipped]
        records = await self.send.all(*(read_or_log(keys, id) for id in ids))
        if renew:
            await self._renew([record.id for record in records if record is not None and not record.ended])
        to_feed = [record for record in records if record is not None and record.to_feed]
        self._skipped.update(set(ids) - {record.id for record in to_feed})
        left = MAX_CHUNKS_IN_ALL
        for record in to_feed:
            if left and record.state is State.FEEDING:
                left = await self._feed(record, left)
                self._last = record.id

    async def _renew(self, ids: Sequence[str]) -> None:
        """Keep these batches from expiring. Without its record, a paused batch would start and any batch would lose its
        ceiling."""
        keys = self.ledger.keys
        renewed = (key(id) for id in ids for key in (keys.batch, keys.batch_lines, keys.batch_input))
        await self.send.all(*(Operation(("EXPIRE", key, KEPT_S), nothing) for key in renewed))

    async def _feed(self, record: Record | None, left: int) -> int:
        """Returns how many chunks are left for other batches: 0 while Redis is short of memory."""
        keys, send, ledger = self.ledger.keys, self.send, self.ledger
        for _ in range(min(left, MAX_CHUNKS)):
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
            except (Unreadable, ValueError) as error:  # sealed, or from another release
                logger.error("batch %s is left to workers that can read it: %s", id, error)
                self._skipped.add(id)
                break
            answers = await send.all(*(ledger.enqueue(job, detached=True) for job in jobs))
            outcomes = [answer.outcome for answer in answers]
            if Intake.FULL in outcomes:
                return 0  # the same chunk is tried again later
            accepted = len(jobs) - outcomes.count(Intake.CANCELLED)
            await send(ledger.finish_chunk(id, record.chunks_fed, accepted, outcomes.count(Intake.EXPIRED)))
            left -= 1
            record = await send(read_or_log(keys, id))
        return left
