"""A streamed answer: pieces of text, written to the job's Redis stream as they come.

Each piece names its call. An entry without text says that a call begins, and readers then start over: so they follow a
failover in mid-stream, and ignore a worker that has lost the job.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field

from turnout.ledger import Coalescer, Ledger
from turnout_workers.background.tasks import log_if_redis_is_away

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Pieces:
    """The pieces that one call streams. What arrives during a write goes with the next one."""

    ledger: Ledger
    send: Coalescer
    job_id: str
    call_id: str
    ttl_s: float
    _pending: list[str] = field(default_factory=list, init=False)
    _writer: asyncio.Task[None] | None = field(default=None, init=False)

    async def begin(self) -> None:
        await self._write({"call": self.call_id})

    async def __call__(self, piece: str) -> None:
        """Add a piece, without waiting for Redis."""
        self._pending.append(piece)
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._drain())

    async def end(self) -> None:
        """Wait until all pieces are written."""
        if self._writer is not None:
            await self._writer

    async def _drain(self) -> None:
        while self._pending:
            text, self._pending = "".join(self._pending), []
            await self._write({"call": self.call_id, "text": text})

    async def _write(self, fields: dict[str, str]) -> None:
        # If it fails, the reader falls back to the result, which has the whole answer.
        with log_if_redis_is_away(logger.warning, "a piece of the stream can't be written"):
            await self.send(self.ledger.stream(self.job_id, fields, self.ttl_s))
