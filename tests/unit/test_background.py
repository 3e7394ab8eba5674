"""What runs in the background of a worker goes on, whatever happens to it."""

from __future__ import annotations

import asyncio
import logging

import pytest

from turnout_workers.background.ending import end
from turnout_workers.runtime import kept_up


async def test_work_that_an_error_ended_is_told_of_and_begun_again(caplog: pytest.LogCaptureFixture) -> None:
    begun, again = 0, asyncio.Event()

    async def work() -> None:
        nonlocal begun
        begun += 1
        if begun == 1:
            raise ValueError("unforeseen")
        again.set()
        await asyncio.Event().wait()

    with caplog.at_level(logging.CRITICAL, "turnout_workers.runtime"):
        task = asyncio.create_task(kept_up(work, again_s=0))
        await asyncio.wait_for(again.wait(), 5)
    assert "unforeseen" in caplog.text
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_work_that_loses_a_cancellation_is_ended_all_the_same() -> None:
    lost = 0

    async def work() -> None:
        nonlocal lost
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                lost += 1
                if lost == 2:
                    raise

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    await asyncio.wait_for(end([task]), 5)
    assert task.cancelled()
