"""Both fleet stores behind one face, on a clock that tests move by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import redis
import redis.asyncio
from tests.integration.state.specification import SpecifiedStore
from tests.properties.ledger.bed import CLOCK_KEY, HAND_CLOCK

from turnout.ledger import Coalescer
from turnout.ledger.keys import Keys
from turnout_workers.state.redis_store import RedisFleetStore, accounts_operation, latencies_operation
from turnout_workers.state.store import Account, WorkersStore

START = 1_000_000
SLOWER = 1_000_000
"""So much slower than the clock of the tests is Redis' own, by which keys expire: a test that stands still for a while
finds all that it has left."""
CLOCK = f"""{HAND_CLOCK}
local call = redis.call
local redis = setmetatable({{call = function(command, ...)
  if command ~= 'PEXPIRE' then return call(command, ...) end
  local key, ms = ...
  return call(command, key, ms * {SLOWER})
end}}, {{__index = redis}})
"""


@dataclass
class MemoryFleet:
    """The executable specification."""

    now: float = START
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    ceilings: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.paused = set[str]()
        self.store = SpecifiedStore(lambda: self.now, self.jobs, self.ceilings, self.paused)

    def advance(self, seconds: float) -> None:
        self.now += seconds

    def put_job(self, job_id: str, token: int, state: str) -> None:
        self.jobs[job_id] = {"token": token, "state": state}

    async def accounts(self, *names: str) -> Mapping[str, Account]:
        return await self.store.accounts(names)

    def put_ceiling(self, account: str, microusd: int) -> None:
        self.ceilings[account] = microusd

    def pause(self, batch: str, paused: bool) -> None:
        (self.paused.add if paused else self.paused.discard)(batch)

    def job(self, job_id: str) -> str:
        state: str = self.jobs[job_id]["state"]
        return state

    def routed(self, job_id: str) -> list[str]:
        found: list[str] = self.jobs[job_id].get("routed", [])
        return found

    async def close(self) -> None: ...


class RedisFleet:
    """The store that workers share, with its keys in an empty Redis."""

    def __init__(self, url: str) -> None:
        self.now: float = START
        self._keys = Keys("test")
        self._redis = redis.Redis.from_url(url, decode_responses=True)
        self._client = redis.asyncio.Redis.from_url(url)
        self._redis.set(CLOCK_KEY, START * 1000)
        self._send = Coalescer(self._client)
        self.store: WorkersStore = RedisFleetStore(self._send, self._keys, CLOCK)

    def advance(self, seconds: float) -> None:
        self.now += seconds
        self._redis.set(CLOCK_KEY, round(self.now * 1000))
        for key in self._redis.scan_iter():
            if (ttl_ms := int(self._redis.pttl(key))) >= 0:
                self._redis.pexpire(key, ttl_ms - round(seconds * 1000) * SLOWER)

    def put_job(self, job_id: str, token: int, state: str) -> None:
        self._redis.hset(self._keys.job(job_id), mapping={"token": token, "state": state})

    async def accounts(self, *names: str) -> Mapping[str, Account]:
        return await self._send(accounts_operation(self._keys, names))

    async def latencies(self) -> Mapping[str, Sequence[int]]:
        return await self._send(latencies_operation(self._keys))

    def put_ceiling(self, account: str, microusd: int) -> None:
        self._redis.hset(self._keys.ceilings, account, str(microusd))

    def pause(self, batch: str, paused: bool) -> None:
        self._redis.hset(self._keys.batch(batch), "state", "paused" if paused else "feeding")

    def job(self, job_id: str) -> str:
        return str(self._redis.hget(self._keys.job(job_id), "state"))

    def routed(self, job_id: str) -> list[str]:
        return [json.loads(event)["to"] for event in self._redis.lrange(self._keys.story(job_id), 0, -1)]

    async def close(self) -> None:
        self._redis.close()
        await self._client.aclose()


AnyFleet = MemoryFleet | RedisFleet
