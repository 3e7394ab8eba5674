"""What runs in the background for as long as its worker or router does: kept up, and ended for sure."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from redis.exceptions import RedisError

logger = logging.getLogger(__name__)

AGAIN_S = 1.0
"""The least pause after an error."""
CANCEL_AGAIN_S = 0.2
PAUSED_S = 0.5
"""A wait that ends so late was one of a process that was not running."""


def begin(work: Coroutine[Any, Any, None], tasks: set[asyncio.Task[None]]) -> None:
    """Do work that nobody awaits. tasks: where it is kept until it has ended, for its loop would let go of it."""
    task = asyncio.create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


@contextmanager
def unless_away(say: Callable[..., None], what: str, *about: object, **extra: str) -> Iterator[None]:
    """Around what is left undone where Redis is away, but for a line in the log. say: a logger's method."""
    try:
        yield
    except (RedisError, OSError) as error:
        say(f"{what}: %s", *about, str(error) or type(error).__name__, extra=extra, stacklevel=3)


async def kept_up(work: Callable[[], Awaitable[object]], every_s: float, what: str = "some work") -> None:
    """Do work every so often, whatever it raises: of an error tell the log, of one that lasts, as while Redis is away,
    once.

    A worker that had silently lost its housekeeping or heartbeat would go on taking jobs that nobody brings to an end.
    """
    told = ""
    while True:
        pause_s = max(every_s, AGAIN_S)
        try:
            await work()
            pause_s, told = every_s, ""
        except (RedisError, OSError) as error:
            if told != (told := str(error) or type(error).__name__):
                logger.warning("%s waits: %s", what, told)
        except Exception:
            logger.critical("%s failed in the background, and begins again", what, exc_info=True)
        await asyncio.sleep(pause_s)


async def came_in_time(wait_s: float) -> bool:
    """Wait. Returns whether that took no longer than it should: else this process, or its loop, was paused, and answers
    may be there that nobody has read."""
    clock = asyncio.get_running_loop().time
    due_at = clock() + wait_s
    await asyncio.sleep(wait_s)
    return clock() - due_at < PAUSED_S


async def end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel these tasks, again and again until they have ended.

    Once may not be enough: before Python 3.12, `asyncio.wait_for`, with which redis-py sends, loses a cancellation that
    comes at the very moment when it completes.
    """
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        ended, left = await asyncio.wait(left, timeout=CANCEL_AGAIN_S)
        await asyncio.gather(*ended, return_exceptions=True)
