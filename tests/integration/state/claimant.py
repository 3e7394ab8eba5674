"""One of many worker processes that want all they can get of one endpoint, until they are killed.

Its own wall clock is set an arbitrary while off; nothing may depend on it.
"""

from __future__ import annotations

import asyncio
import time
from itertools import count
from pathlib import Path
from typing import TextIO

import redis
import redis.asyncio

from turnout.ledger import Coalescer
from turnout.ledger.keys import Keys
from turnout_workers.routing.fleet import Limits
from turnout_workers.state.redis_store import RedisFleetStore
from turnout_workers.state.store import Ask, Bid, Ceiling, Granted, NoRoom, Report

TTL_S = 20.0
ENDPOINT = "sim/model"


def fast_clock(speed: int) -> str:
    """Redis's own time, running `speed` times as fast."""
    return f"""local function now_ms()
  local time = redis.call('TIME')
  return (time[1] % 100000000) * {1000 * speed} + math.floor(time[2] * {speed} / 1000)
end
"""


async def claim(store: RedisFleetStore, name: str, speed: int, bid: Bid, ceiling: Ceiling, out: TextIO) -> None:
    """Ask again and again, writing down what was granted as soon as it is known."""
    for i in count():
        match await store.admit(Ask(f"{name}:{i}", (bid,), TTL_S, (ceiling,))):
            case Granted(lease, endpoint, at):
                out.write(f"{at}\n")
                out.flush()
                await asyncio.sleep(0.002)  # killed here, a lease stays behind
                cost = bid.cost_microusd - 1
                await store.report(Report(lease, endpoint, True, input_tokens=2, output_tokens=1, cost_microusd=cost))
            case NoRoom(retry_at, now):
                wait_s = 0.5 if retry_at is None else (retry_at - now) / speed
                await asyncio.sleep(min(wait_s, 0.02))
        if i % 20 == 0:
            await store.expire()


def work(url: str, path: Path, speed: int, skew_s: float, limits: Limits, ceiling: Ceiling, cost: int) -> None:
    """The body of a process: several jobs at once over one connection."""
    real = time.time
    time.time = lambda: real() + skew_s

    async def main() -> None:
        store = RedisFleetStore(Coalescer(redis.asyncio.Redis.from_url(url)), Keys("test"), fast_clock(speed))
        bid = Bid(ENDPOINT, limits, 2, 2, cost)
        with path.open("w") as out:
            names = (f"{path.stem}-{i}" for i in range(4))
            await asyncio.gather(*(claim(store, name, speed, bid, ceiling, out) for name in names))

    asyncio.run(main())
