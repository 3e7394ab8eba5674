"""Feeds detached batches (`turnout.batch.detached`): a chunk now and then, as far as each one's window allows."""

from __future__ import annotations

import logging
from typing import Any

import redis.asyncio

from turnout.batch.detached import State, chunk_jobs
from turnout.errors import Unreadable
from turnout.ledger import Intake, Ledger
from turnout.ledger.script import Coalescer

logger = logging.getLogger(__name__)

WINDOW = 5000
"""Most jobs of a batch that are queued or at work, as for `turnout run`."""
CHUNKS = 4
"""Most chunks of a batch in one round of housekeeping."""


class BatchFeeding:
    def __init__(self, client: redis.asyncio.Redis, ledger: Ledger, call: Coalescer) -> None:
        self._client = client
        self._ledger = ledger
        self._call = call

    async def round(self) -> None:
        """One bounded round, by whichever worker does the housekeeping. Cut off anywhere, it does no harm."""
        names: Any = await self._client.zrange(self._ledger.keys.batches, 0, -1)
        for name in names:
            await self._feed(name.decode())

    async def _feed(self, id: str) -> None:
        keys = self._ledger.keys
        key, done, source = keys.batch(id), keys.done(id), keys.batch(id, "input")
        for _ in range(CHUNKS):
            record: Any = await self._client.hmget(key, ["state", "next", "fed", "max_cost_microusd"])
            state, number, fed, ceiling = record
            if state != State.FEEDING.encode():
                return
            if int(fed) - int(await self._client.llen(done)) >= WINDOW:
                return
            chunk: Any = await self._client.lindex(source, 0)
            if chunk is None:
                return
            if ceiling is not None:
                await self._call(self._ledger.set_ceiling(id, int(ceiling)))
            try:
                jobs = chunk_jobs(chunk, id, self._ledger.keyring)
            except Unreadable as error:
                logger.error("batch %s is left to a worker that has the key: %s", id, error)
                return
            answers = await self._call.all(*(self._ledger.enqueue(job) for job in jobs))
            if any(answer.outcome is Intake.FULL for answer in answers):
                return  # Redis is short of memory: the same chunk again, later
            await self._call(self._ledger.fed(id, int(number), len(jobs)))
            ttl_s = await self._client.ttl(key)
            await self._client.expire(done, max(1, ttl_s))
