"""Waits that a cancellation doesn't interrupt: it is delivered where the task waits next.

If a command were interrupted, the task couldn't know whether Redis has carried it out, nor what to do next.
"""

from __future__ import annotations

import asyncio
from typing import TypeVar

T = TypeVar("T")


async def uninterrupted(future: asyncio.Future[T]) -> T:
    """Wait until the future is done. If this task is cancelled meanwhile, it still gets the outcome, and is cancelled
    where it waits next."""
    interrupted = False
    while not future.done():
        try:
            await asyncio.wait((future,))
        except asyncio.CancelledError:
            interrupted = True
    if interrupted:
        deliver_cancellation_later()
    return future.result()


async def deliver_cancellation_now() -> None:
    """Let a postponed cancellation arrive here rather than wherever this task waits next."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        await asyncio.sleep(0)


def deliver_cancellation_later() -> None:
    """Postpone a cancellation that was caught: it arrives where this task waits next."""
    task = asyncio.current_task()
    assert task is not None
    task.uncancel()  # the one that was caught; `asyncio.timeout` and others count them
    task.cancel()
