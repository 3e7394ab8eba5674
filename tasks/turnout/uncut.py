"""What must not be left half done: a cancellation that comes meanwhile is put off, and not lost.

Of a command that was cut off nobody knows whether Redis has carried it out.
"""

from __future__ import annotations

import asyncio
from typing import TypeVar

T = TypeVar("T")


async def uncut(future: asyncio.Future[T]) -> T:
    """Wait for it to its end: who is cancelled meanwhile knows the outcome, and is cancelled where it waits next."""
    cut = False
    while not future.done():
        try:
            await asyncio.wait((future,))
        except asyncio.CancelledError:
            cut = True
    if cut:
        cancel_later()
    return future.result()


def cancel_later() -> None:
    """Put a cancellation off that has been caught: it comes again where this task waits next."""
    task = asyncio.current_task()
    assert task is not None
    task.uncancel()
    task.cancel()
