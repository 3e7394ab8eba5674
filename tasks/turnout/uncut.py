"""Waits that are not cut off: a cancellation that comes meanwhile is put off until the task waits next.

After a command was cut off, nobody knows whether Redis has carried it out, nor what to do next.
"""

from __future__ import annotations

import asyncio
from typing import TypeVar

T = TypeVar("T")


async def uncut(future: asyncio.Future[T]) -> T:
    """Wait for a future to its end. If this task is cancelled meanwhile, it still gets the outcome, and is cancelled
    where it waits next."""
    cut = False
    while not future.done():
        try:
            await asyncio.wait((future,))
        except asyncio.CancelledError:
            cut = True
    if cut:
        cancel_later()
    return future.result()


async def cancelled_now() -> None:
    """Let a cancellation that was put off come here, rather than wherever this task waits next."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        await asyncio.sleep(0)


def cancel_later() -> None:
    """Put off a cancellation that was caught: it comes again where this task waits next."""
    task = asyncio.current_task()
    assert task is not None
    task.uncancel()  # the one that was caught; `asyncio.timeout` and others count them
    task.cancel()
