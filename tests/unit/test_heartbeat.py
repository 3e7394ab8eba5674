"""What is held and can't be renewed is let go in time."""

from __future__ import annotations

import asyncio
from typing import Any

from turnout.ledger import Ledger
from turnout_workers.background.heartbeat import Heartbeat
from turnout_workers.state.memory import MemoryFleetStore


async def test_what_can_not_be_renewed_is_aborted_a_third_before_its_lease_ends_and_once() -> None:
    clock, aborted, tidied = [0.0], [], asyncio.Event()
    never: Any = None
    heartbeat = Heartbeat(Ledger(), never, MemoryFleetStore(lambda: clock[0]), 3.0, lambda: clock[0])

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
