"""What a client waits for: one channel for all of it, and one connection that listens there.

A word on it is the id of a job that has settled, or `+` and the id of one of whose answer there is more to read. Words
can be lost with the connection, so whoever waits also asks by himself, every RECHECK_S; and bears it that Redis is away
for a while, as in a restart or a failover.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

import redis
import redis.asyncio
from redis.exceptions import RedisError

RECHECK_S = 5.0
"""How often a waiting job is asked after, in case word of it was lost."""
AGAIN_S = 0.2
"""Between two tries to listen."""
AWAY_S = 60.0
"""How long Redis may be away from one who waits, before he is told."""


class Patience:
    """`with patience:` bears errors of a Redis that is away, until it has been so for AWAY_S."""

    def __init__(self) -> None:
        self._away_since: float | None = None

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> bool:
        if error is None:
            self._away_since = None
        elif isinstance(error, redis.ConnectionError | redis.TimeoutError | redis.ReadOnlyError):
            now = time.monotonic()
            self._away_since = self._away_since or now
            return now - self._away_since < AWAY_S
        return False


class _Register(defaultdict[str, set[Any]]):
    """Who wants to hear which words: queues, to which these are put."""

    @contextlib.contextmanager
    def entered(self, listener: Any, words: Iterable[str]) -> Iterator[None]:
        words = list(words)
        for word in words:
            self[word].add(listener)
        try:
            yield
        finally:
            for word in words:
                self[word].discard(listener)
                if not self[word]:
                    del self[word]

    def tell(self, word: str) -> None:
        for listener in tuple(self.get(word, ())):
            listener.put_nowait(word)


# --- for threads -----------------------------------------------------------------------------------------


class Heard(queue.SimpleQueue[str]):
    """The words for one listener."""

    def wait(self, limit_s: float) -> list[str]:
        """All since the last time; none: the time is up."""
        words = []
        with contextlib.suppress(queue.Empty):
            words.append(self.get(timeout=limit_s))
            while True:
                words.append(self.get_nowait())
        return words


class Inbox:
    """For all threads of a process. A thread of its own listens from the first wait on."""

    def __init__(self, client: redis.Redis, channel: str) -> None:
        self.channel = channel
        self._client = client
        self._register = _Register(set)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._closed = False

    def close(self) -> None:
        self._closed = True
        if self._thread is not None:
            self._thread.join(2)

    @contextlib.contextmanager
    def listening(self, words: Iterable[str]) -> Iterator[Heard]:
        """Hear these while the block runs."""
        heard = Heard()
        with contextlib.ExitStack() as entered:
            with self._lock:
                entered.enter_context(self._register.entered(heard, words))
                if self._thread is None or not self._thread.is_alive():  # a fork has no threads of its parent's
                    self._ready.clear()
                    self._thread = threading.Thread(target=self._listen, name="turnout-inbox", daemon=True)
                    self._thread.start()
            self._ready.wait(RECHECK_S)
            try:
                yield heard
            finally:
                with self._lock:
                    entered.close()

    def _listen(self) -> None:
        while not self._closed:
            try:
                with self._client.pubsub() as pubsub:  # type: ignore[no-untyped-call]
                    pubsub.subscribe(self.channel)
                    while not self._closed:
                        message = pubsub.get_message(timeout=0.25)
                        if message is None:
                            continue
                        self._ready.set()
                        if message["type"] == "message":
                            with self._lock:
                                self._register.tell(message["data"].decode())
            except (RedisError, OSError):
                self._ready.set()  # who waits need not wait for this: asking, they meet the error themselves
                time.sleep(AGAIN_S)


# --- for asyncio -----------------------------------------------------------------------------------------


class AsyncHeard(asyncio.Queue[str]):
    """The words for one listener."""

    async def wait(self, limit_s: float) -> list[str]:
        """All since the last time; none: the time is up."""
        words = []
        with contextlib.suppress(TimeoutError, asyncio.QueueEmpty):
            async with asyncio.timeout(limit_s):
                words.append(await self.get())
            while True:
                words.append(self.get_nowait())
        return words


class AsyncInbox:
    """For all coroutines of a loop. A task listens from the first wait on."""

    def __init__(self, client: redis.asyncio.Redis, channel: str) -> None:
        self.channel = channel
        self._client = client
        self._register = _Register(set)
        self._task: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def listening(self, words: Iterable[str]) -> AsyncIterator[AsyncHeard]:
        """Hear these while the block runs."""
        heard = AsyncHeard()
        with self._register.entered(heard, words):
            if self._task is None:
                self._task = asyncio.create_task(self._listen())
            await self._ready.wait()
            yield heard

    async def _listen(self) -> None:
        while True:
            try:
                async with self._client.pubsub() as pubsub:
                    await pubsub.subscribe(self.channel)
                    async for message in pubsub.listen():
                        self._ready.set()
                        if message["type"] == "message":
                            self._register.tell(message["data"].decode())
            except (RedisError, OSError):
                self._ready.set()  # as above
                if (task := asyncio.current_task()) and task.cancelling():
                    return  # redis-py may tell of an end that came while it connected as of a lost connection
                await asyncio.sleep(AGAIN_S)
