"""What is held and can't be renewed is let go in time."""

from __future__ import annotations

import asyncio
import math
from itertools import count
from typing import Any

import pytest
from tests.integration.state.specification import SpecifiedStore

from turnout.ledger import Ledger
from turnout_workers.background.heartbeat import Heartbeat


async def test_what_can_not_be_renewed_is_aborted_a_third_before_its_lease_ends_and_once() -> None:
    clock, aborted, tidied = [0.0], [], asyncio.Event()
    never: Any = None
    heartbeat = Heartbeat(Ledger(), never, SpecifiedStore(lambda: clock[0]), 3.0, lambda: clock[0])

    async def work() -> None:
        with heartbeat.holding("job", 1, 0.0):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                aborted.append(clock[0])
                await tidied.wait()

    working = asyncio.create_task(work())
    await asyncio.sleep(0)
    for clock[0] in (1.6, 1.8, 2.8):
        heartbeat.lose_expired()
        await asyncio.sleep(0)
    tidied.set()
    await working
    assert aborted == [1.8]


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
