"""Background tasks of a worker or router: kept running, and reliably ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from redis.exceptions import RedisError

logger = logging.getLogger(__name__)

ERROR_PAUSE_S = 1.0
"""Shortest pause after an error."""
CANCEL_EVERY_S = 0.2
PAUSED_S = 0.5
"""A sleep that ends this late shows that the process was paused."""


def spawn(work: Coroutine[Any, Any, None], tasks: set[asyncio.Task[None]]) -> None:
    """Run work that nothing awaits. tasks: holds it until it ends, because the event loop keeps only a weak
    reference."""
    task = asyncio.create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


@contextmanager
def log_if_redis_is_away(log: Callable[..., None], message: str, *args: object, **extra: str) -> Iterator[None]:
    """Skip the rest of the block while Redis is away, and log why. log: a logger's method."""
    try:
        yield
    except (RedisError, OSError) as error:
        log(f"{message}: %s", *args, str(error) or type(error).__name__, extra=extra, stacklevel=3)


async def run_repeatedly(work: Callable[[], Awaitable[object]], every_s: float, name: str = "some work") -> None:
    """Do work every `every_s`, whatever it raises. An error that lasts, as while Redis is away, is logged once.

    A worker that had silently lost its housekeeping or heartbeat would go on taking jobs that it can't bring to an end.
    """
    last_error = ""
    while True:
        pause_s = max(every_s, ERROR_PAUSE_S)
        try:
            await work()
            pause_s, last_error = every_s, ""
        except (RedisError, OSError) as error:
            if last_error != (last_error := str(error) or type(error).__name__):
                logger.warning("%s waits: %s", name, last_error)
        except Exception:
            logger.critical("%s failed in the background and starts again", name, exc_info=True)
        await asyncio.sleep(pause_s)


async def slept_on_time(wait_s: float) -> bool:
    """Sleep. Returns False if that took too long: then this process, or its loop, was paused, and answers may have
    arrived unread."""
    clock = asyncio.get_running_loop().time
    due_at = clock() + wait_s
    await asyncio.sleep(wait_s)
    return clock() - due_at < PAUSED_S


async def cancel_all(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel these tasks, repeatedly until all have ended.

    Once may not be enough: before Python 3.12, `asyncio.wait_for`, with which redis-py sends, loses a cancellation that
    comes at the very moment when it completes.
    """
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        ended, left = await asyncio.wait(left, timeout=CANCEL_EVERY_S)
        await asyncio.gather(*ended, return_exceptions=True)
