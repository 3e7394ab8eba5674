"""Many processes that are killed at random act as one: limits and ceilings hold, and are used."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from tests.integration.state.claimant import ENDPOINT, TTL_S, fast_clock, work

from turnout.ledger import Coalescer
from turnout.ledger.keys import Keys
from turnout_workers.routing.fleet import Limits
from turnout_workers.routing.health import RAMP_S
from turnout_workers.state.redis_store import RedisFleetStore, accounts_operation
from turnout_workers.state.store import Ask, Bid, Ceiling, Granted

PROCESSES = 8
CONTEXT = multiprocessing.get_context("forkserver")


class Fleet:
    """Processes of `claimant.work`, each with a wall clock of its own; their files outlive them."""

    def __init__(self, directory: Path, *settings: Any) -> None:
        self.rng = random.Random(7)
        self.directory = directory
        self.settings = settings
        self.started = 0
        self.procs = [self._start() for _ in range(PROCESSES)]

    def _start(self) -> BaseProcess:
        self.started += 1
        url, speed, *rest = self.settings
        skew_s = self.rng.choice([-3600, 0, 3600])
        path = self.directory / f"{self.started}.txt"
        proc = CONTEXT.Process(target=work, args=(url, path, speed, skew_s, *rest), daemon=True)
        proc.start()
        return proc

    def grants(self) -> list[float]:
        """When calls were granted. A line that a kill cut off is left out."""
        texts = [path.read_text() for path in self.directory.glob("*.txt")]
        return sorted(float(line) for text in texts for line in text.splitlines(True) if line.endswith("\n"))

    def run(self, enough: Callable[[list[float]], bool]) -> list[float]:
        """Kill one at random four times a second until enough was granted."""
        until = time.monotonic() + 60
        try:
            while not enough(self.grants()) and time.monotonic() < until:
                time.sleep(0.25)
                i = self.rng.randrange(PROCESSES)
                self.procs[i].kill()
                self.procs[i] = self._start()
        finally:
            for proc in self.procs:
                proc.kill()
                proc.join()
        return self.grants()


def most_in_any_minute(times: list[float]) -> int:
    return max(i - bisect_left(times, at - 60 + 1e-9) + 1 for i, at in enumerate(times))


@pytest.mark.parametrize(("limit", "speed"), [(60, 40), (600, 12)])  # 40 and 120 grants a second
def test_eight_dying_processes_never_pass_a_limit_and_use_it(
    redis_url: str, tmp_path: Path, limit: int, speed: int
) -> None:
    settings = (redis_url, speed, Limits(requests_per_minute=limit), Ceiling("tenant:t", None), 3)
    minutes = 61 * 3
    times = Fleet(tmp_path, *settings).run(lambda times: len(times) > 0 and times[-1] - times[0] >= minutes)
    assert most_in_any_minute(times) <= limit
    with redis.Redis.from_url(redis_url) as client:
        charged = "return cmsgpack.unpack(redis.call('HGET', KEYS[1], 'now')).charged[1]"
        granted = int(client.eval(charged, 1, Keys("test").usage(ENDPOINT)))
    unwritten = granted - len(times)  # a kill came before the line
    used = (sum(at < times[0] + minutes for at in times) + unwritten) / (limit * minutes / 60)
    # All of it but a few per cent; beside other work eight processes at many times the pace of the clock come to less.
    assert used >= 0.8, f"{used:.3f} of the limit, {unwritten} grants unwritten"


def test_traffic_that_grows_back_never_passes_the_limit(redis_url: str, tmp_path: Path) -> None:
    limit, speed = 600, 4

    async def recovered() -> float:
        client = redis.asyncio.Redis.from_url(redis_url)
        await client.flushall()
        store = RedisFleetStore(Coalescer(client), Keys("test"), fast_clock(speed))
        await store.eject(ENDPOINT, 0.0, "refused")
        await store.recover(ENDPOINT)
        _, observed = await store.state()
        await client.aclose()
        return observed[ENDPOINT].health.recovered_at

    settings = (redis_url, speed, Limits(requests_per_minute=limit), Ceiling("tenant:t", None), 3)
    recovered_at = asyncio.run(recovered())
    times = Fleet(tmp_path, *settings).run(lambda times: len(times) > 0 and times[-1] > recovered_at + RAMP_S)
    by_second = Counter(int(at) for at in times if at < int(recovered_at + RAMP_S))
    assert max(by_second.values()) <= 1.2 * limit / 60


def test_ceilings_hold_while_processes_die(redis_url: str, tmp_path: Path) -> None:
    speed, ceiling = 20, 1500
    fleet = Fleet(tmp_path, redis_url, speed, Limits(), Ceiling("tenant:t", ceiling), 4)
    columns = [f"tenant:t|{column}" for column in ("spent", "reserved", "unsure")]

    def is_full(_: list[float]) -> bool:
        with redis.Redis.from_url(redis_url) as client:
            return sum(int(amount or 0) for amount in client.hmget(Keys("test").money, columns)) > ceiling - 4

    grants = fleet.run(is_full)

    async def settled() -> Any:
        client = redis.asyncio.Redis.from_url(redis_url)
        store = RedisFleetStore(send := Coalescer(client), Keys("test"), fast_clock(speed))
        await asyncio.sleep(TTL_S / speed)
        await store.expire()
        account = (await send(accounts_operation(Keys("test"), ["tenant:t"])))["tenant:t"]
        in_flight = (await store.state())[1][ENDPOINT].load.in_flight
        await client.aclose()
        return account, in_flight

    account, in_flight = asyncio.run(settled())
    assert account.reserved == in_flight == 0
    assert ceiling * 0.9 < account.spent + account.unsure <= ceiling
    assert account.spent % 3 == 0
    assert account.unsure % 4 == 0
    assert account.spent // 3 + account.unsure // 4 >= len(grants), "a kill may come before the line"


async def test_a_dead_endpoint_gets_one_probe_from_a_thousand_asks(redis_url: str) -> None:
    clients = [redis.asyncio.Redis.from_url(redis_url) for _ in range(PROCESSES)]
    stores = [RedisFleetStore(Coalescer(client), Keys("test")) for client in clients]
    await stores[0].eject(ENDPOINT, 0.0, "refused")
    bid = Bid(ENDPOINT, Limits(), 1, 1, 1)
    answers = await asyncio.gather(
        *(store.admit(Ask(f"{i}:{j}", (bid,), 30)) for i, store in enumerate(stores) for j in range(125))
    )
    granted = [answer for answer in answers if isinstance(answer, Granted)]
    assert [grant.probe for grant in granted] == [True]
    for client in clients:
        await client.aclose()
