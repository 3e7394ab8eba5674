"""Ending what runs in the background, for sure."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

AGAIN_S = 0.2


async def end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel them until they have ended.

    Once may not do: until Python 3.12 `asyncio.wait_for`, by which redis-py sends, loses a cancellation that comes in
    the moment of its end.
    """
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        ended, left = await asyncio.wait(left, timeout=AGAIN_S)
        await asyncio.gather(*ended, return_exceptions=True)
