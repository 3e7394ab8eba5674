"""Ending what runs in the background, for sure."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

AGAIN_S = 0.2


async def end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel these tasks, again and again until they have ended.

    Once may not be enough: before Python 3.12, `asyncio.wait_for`, with which redis-py sends, loses a cancellation that
    comes at the very moment when it completes.
    """
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        ended, left = await asyncio.wait(left, timeout=AGAIN_S)
        await asyncio.gather(*ended, return_exceptions=True)
