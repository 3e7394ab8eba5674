"""What is held and can't be renewed is let go in time."""

from __future__ import annotations

import asyncio
import math
from itertools import count
from typing import Any

import pytest
import redis
from tests.integration.state.specification import SpecifiedStore

from turnout.ledger import Ledger
from turnout_workers.background.heartbeat import Heartbeat


async def test_what_the_next_round_may_come_too_late_for_is_aborted_once() -> None:
    aborted, tidied = [], asyncio.Event()
    never: Any = None
    heartbeat = Heartbeat(Ledger(), never, SpecifiedStore(lambda: 0.0), 30.0, lambda: 0.0)
    next_at = 0.0

    async def work() -> None:
        with heartbeat.holding("job", 1, 0.0):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                aborted.append(next_at)
                await tidied.wait()

    working = asyncio.create_task(work())
    await asyncio.sleep(0)
    for next_at in (21.9, 22.1, 28.0):  # the round takes 5 s, and the lease counts for 27 s
        heartbeat.lose_expired(next_at)
        await asyncio.sleep(0)
    tidied.set()
    await working
    assert aborted == [22.1]


class Replies:
    """What Redis says to renewals, one after the other: an error is raised, None never comes."""

    def __init__(self, *replies: list[bool] | Exception | None) -> None:
        self._replies = iter(replies)
        self.asked: list[tuple[float, Any]] = []
        """When, and for which job and token."""
        self.all_asked = asyncio.Event()

    async def __call__(self, call: Any) -> Any:
        self.asked.append((asyncio.get_running_loop().time(), call.command[-2:]))
        reply = next(self._replies, None)
        if reply is None:
            await asyncio.Future()
        if isinstance(reply, Exception):
            raise reply
        self.all_asked.set()
        return reply


@pytest.mark.parametrize("trouble", [None, redis.ConnectionError("cut")])
async def test_a_renewal_whose_reply_is_lost_is_tried_again_before_anything_is_aborted(
    trouble: Exception | None,
) -> None:
    """Of a lease of which a third is over, as when it is renewed for the first time."""
    ttl_s, clock = 6.0, asyncio.get_running_loop().time
    send = Replies(trouble, [True])
    untyped: Any = send
    heartbeat = Heartbeat(Ledger(), untyped, SpecifiedStore(lambda: 0.0), ttl_s, clock)
    beating = asyncio.create_task(heartbeat.run())
    with heartbeat.holding("job", 1, clock() - ttl_s / 3) as hold:
        await asyncio.wait_for(send.all_asked.wait(), 60)
        (first_at, _), (second_at, _) = send.asked
        assert second_at - first_at >= ttl_s / 6 - 0.1, "also where the first fails at once"
        assert not hold.lost
    beating.cancel()


async def test_a_renewal_that_is_answered_after_its_round_counts_as_of_when_it_was_asked_for() -> None:
    """Else a Redis that takes longer than a round for each answer would cost every call, though it renews them all."""
    ttl_s, clock = 1.2, asyncio.get_running_loop().time

    async def late(call: Any) -> list[bool]:
        await asyncio.sleep(ttl_s / 4)
        return [True]

    heartbeat = Heartbeat(Ledger(), late, SpecifiedStore(lambda: 0.0), ttl_s, clock)  # type: ignore[arg-type]
    beating = asyncio.create_task(heartbeat.run())
    began = clock()
    with heartbeat.holding("job", 1, began) as hold:
        while hold.valid_until < began + 3 * ttl_s:
            await asyncio.sleep(0.01)
    beating.cancel()


async def test_what_is_lost_is_renewed_no_more() -> None:
    send, clock = Replies([True]), asyncio.get_running_loop().time
    untyped: Any = send
    heartbeat = Heartbeat(Ledger(), untyped, SpecifiedStore(lambda: 0.0), 30.0, clock)
    with heartbeat.holding("lost", 1, clock()) as lost, heartbeat.holding("held", 1, clock()):
        lost.lost = True
        beating = asyncio.create_task(heartbeat.run())
        await asyncio.wait_for(send.all_asked.wait(), 60)
        beating.cancel()
    assert [whose for _, whose in send.asked] == [("held", 1)]


@pytest.mark.parametrize("ending", [True, False])
async def test_a_renewal_that_comes_after_the_jobs_own_end_aborts_nothing(ending: bool) -> None:
    """The ledger knows the job no more as ours: we have ended it, but there is still a call to be reported."""
    renewals, told = 0, asyncio.Event()

    async def no_longer_ours(_call: object) -> list[bool]:
        nonlocal renewals
        renewals += 1
        if renewals == 2:
            told.set()
        return [False]

    call: Any = no_longer_ours
    clock = count(0.0, 10.0).__next__  # the next round is due whenever it is asked, but each has 10 s of real time
    heartbeat = Heartbeat(Ledger(), call, SpecifiedStore(lambda: 0.0), 30.0, clock)

    async def work() -> str:
        with heartbeat.holding("job", 1, 0.0) as hold:
            hold.ending = ending
            hold.valid_until = math.inf
            try:
                await told.wait()
            except asyncio.CancelledError:
                return "aborted"
            return "reported"

    working = asyncio.create_task(work())
    await asyncio.sleep(0)
    beating = asyncio.create_task(heartbeat.run())
    assert await asyncio.wait_for(working, 60) == ("reported" if ending else "aborted")
    beating.cancel()
