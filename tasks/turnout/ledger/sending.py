"""How calls travel to Redis: `run` sends them over a blocking connection, a `Coalescer` over an asyncio one.

Any number of calls shares a round trip. What both do is written once, as a coroutine; over a blocking connection it
never has to wait for a loop, so `at_once` runs it to its end.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import redis
import redis.asyncio
from redis.exceptions import DataError, NoScriptError, RedisError, ResponseError

from turnout.ledger.script import Call
from turnout.redis_trouble import UNANSWERED
from turnout.uncut import cancel_later

T = TypeVar("T")

MAX_BATCH = 128
"""Once a `Coalescer` has so many calls together, they go. More would keep a loop from all else."""

AGAIN_S = (0.0, 0.5, 1.5)
"""How long a `Coalescer` waits before it sends once more what can be repeated, when a connection breaks: not at first,
for others may be well, then for a Redis that starts again."""

UNWRITABLE = (UnicodeError, TypeError, DataError)
"""What a command raises that can't be written: an id with half a surrogate pair in it, say."""

Command = tuple[Any, ...]
Exchange = Callable[[redis.asyncio.Redis, Sequence[Command]], Awaitable[list[Any]]]
"""Sends commands in one round trip. Returns a reply for each, in order: what Redis refused as the error, unraised."""
Send = Callable[[Sequence[Command]], Awaitable[list[Any]]]
"""An exchange with its client."""


def run(client: redis.Redis, calls: Sequence[Call[T]]) -> list[T]:
    """Send all calls in one round trip, in order; raises the first error after all were sent."""
    mixed = len({call.script for call in calls}) > 1  # then those of a script that Redis doesn't know would come last
    replies = at_once((_with_scripts if mixed else _replies)(partial(_execute, client), calls))
    return [call.read(reply) for call, reply in zip(calls, replies, strict=True)]


def at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that blocks wherever it would have to wait, and so needs no loop.

    A loop that runs in this thread is not to know of its generators either, for it would close them at its own end.
    """
    hooks = sys.get_asyncgen_hooks()
    try:
        sys.set_asyncgen_hooks(None, None)
        coroutine.send(None)
    except StopIteration as end:
        value: T = end.value
        return value
    finally:
        sys.set_asyncgen_hooks(*hooks)
    raise RuntimeError("a coroutine that was to block has waited for a loop")


async def _execute(client: redis.Redis, commands: Sequence[Command]) -> list[Any]:
    """Not by redis-py's pipeline, which puts a connection back with replies unread where an exception cuts in, as out
    of a signal's handler: the next caller would take them for its own."""
    pool = client.connection_pool
    try:
        connection: Any = pool.get_connection()
    except RedisError:
        raise
    except BaseException:
        pool.disconnect(inuse_connections=False)  # among them is perhaps one whose greeting was cut off
        raise
    try:
        exchange = partial(_exchanged, client, connection, commands)
        replies: list[Any] = connection.retry.call_with_retry(exchange, lambda _: connection.disconnect())
        return replies
    except BaseException:
        connection.disconnect()
        raise
    finally:
        pool.release(connection)


def _exchanged(client: redis.Redis, connection: Any, commands: Sequence[Command]) -> list[Any]:
    connection.send_packed_command(connection.pack_commands(commands))
    replies: list[Any] = []
    for name, *_ in commands:
        try:
            replies.append(client.parse_response(connection, name))  # type: ignore[no-untyped-call]
        except ResponseError as error:
            replies.append(error)
    return replies


async def pipelined(client: redis.asyncio.Redis, commands: Sequence[Command]) -> list[Any]:
    """An `Exchange` by redis-py's own means."""
    async with client.pipeline(transaction=False) as pipe:
        for command in commands:
            pipe.execute_command(*command)
        return list(await pipe.execute(raise_on_error=False))


async def _replies(send: Send, calls: Sequence[Call[Any]]) -> list[Any]:
    """Send calls in order, and those whose scripts Redis doesn't know, perhaps just started, once more with these."""
    replies = await send([call.command for call in calls])
    if refused := [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]:
        for i, reply in zip(refused, await _with_scripts(send, [calls[i] for i in refused]), strict=True):
            replies[i] = reply
    return replies


async def _with_scripts(send: Send, calls: Sequence[Call[Any]]) -> list[Any]:
    """Send calls in order, and their scripts before them, which Redis remembers from then on. Raises what it says of a
    script that it can't read."""
    scripts = {call.script for call in calls if call.script}
    loading = [("SCRIPT", "LOAD", script.source) for script in scripts]
    replies = await send([*loading, *(call.command for call in calls)])
    loaded, replies = replies[: len(scripts)], replies[len(scripts) :]
    for error in loaded:
        if isinstance(error, Exception):
            raise error
    return replies


@dataclass(slots=True, eq=False)
class _Parcel:
    """Calls that travel together. The replies lie here and not in the future, which is lost if the task that awaits it
    is cancelled: `whole` then awaits another. At every step of a job this takes a third of the time of `uncut`."""

    calls: Sequence[Call[Any]]
    answered: asyncio.Future[None]
    whole: bool = False
    replies: Sequence[Any] = ()
    """One for each call, once they are there."""

    @property
    def forsaken(self) -> bool:
        """Nobody waits for it any more. A `whole` one is only between two futures."""
        return self.answered.cancelled() and not self.whole

    def give(self, replies: Sequence[Any]) -> None:
        self.replies = replies
        if not self.answered.done():
            self.answered.set_result(None)


class Coalescer:
    """Sends calls of concurrent coroutines together: what arrives while others are under way goes with the next.

    A coroutine's calls run in the order in which it awaits them, those of `all` in that in which they are given, but
    for those of a script that Redis doesn't know yet.

    Of a caller that is cancelled, what is still queued is not sent, and what was sent runs to its end all the same. One
    that asked for the `whole` has it sent, and gets the reply.

    When a connection breaks, Redis may or may not have done what it was asked: what is `repeatable` is sent again, the
    rest is left to its callers. What is queued when that is in vain, or when Redis leaves a round trip unanswered,
    fails with it.
    """

    def __init__(self, client: redis.asyncio.Redis, exchange: Exchange = pipelined, flights: int = 1) -> None:
        """exchange: how commands travel, should a caller know a faster way than redis-py's. flights: most round trips
        at a time, each by a connection of its own."""
        self._client = client
        self._exchange = exchange
        self._most = flights
        self._queue: deque[_Parcel] = deque()
        self._flights: set[asyncio.Task[None] | None] = set()

    async def __call__(self, call: Call[T]) -> T:
        parcel = self._queued(call)
        await parcel.answered
        return call.read(parcel.replies[0])

    async def whole(self, call: Call[T]) -> T:
        """A call whose outcome must be known: if its caller is cancelled meanwhile it still gets the reply, and is
        cancelled where it waits next."""
        parcel, cut = self._queued(call, whole=True), False
        while not parcel.replies:
            try:
                await parcel.answered
            except asyncio.CancelledError:
                cut, parcel.answered = True, asyncio.get_running_loop().create_future()
        if cut:
            cancel_later()
        return call.read(parcel.replies[0])

    async def all(self, *calls: Call[T]) -> list[T]:
        """Several calls, in this order and with as few round trips; raises the first error after all were sent, but at
        once where Redis leaves them unanswered."""
        replies: list[Any] = []
        for start in range(0, len(calls), MAX_BATCH):
            parcel = self._queued(*calls[start : start + MAX_BATCH])
            await parcel.answered
            if isinstance(error := parcel.replies[0], UNANSWERED):
                raise error
            replies += parcel.replies
        return [call.read(reply) for call, reply in zip(calls, replies, strict=True)]

    def _queued(self, *calls: Call[Any], whole: bool = False) -> _Parcel:
        parcel = _Parcel(calls, asyncio.get_running_loop().create_future(), whole)
        self._queue.append(parcel)
        if len(self._flights) < self._most:
            self._flights.add(asyncio.create_task(self._fly()))
        return parcel

    async def _fly(self) -> None:
        """Send batches until nothing is queued."""
        try:
            await asyncio.sleep(0)  # let every coroutine that is ready now add its call
            while self._queue:
                parcels, calls = list[_Parcel](), list[Call[Any]]()
                while self._queue and len(calls) < MAX_BATCH:
                    if not (parcel := self._queue.popleft()).forsaken:
                        parcels.append(parcel)
                        calls += parcel.calls
                replies = iter(await self._told(calls, AGAIN_S) if calls else ())
                for parcel in parcels:
                    parcel.give([*islice(replies, len(parcel.calls))])
        finally:
            self._flights.discard(asyncio.current_task())

    async def _told(self, calls: Sequence[Call[Any]], waits_s: Sequence[float]) -> list[Any]:
        """A reply for each, or the error that it is to raise. waits_s: before what can be repeated is sent again."""
        try:
            return await _replies(self._send, calls)
        except UNWRITABLE as error:  # one of them, so that none was sent
            if len(calls) == 1:
                return [error]
            return [reply for call in calls for reply in await self._told([call], ())]
        except Exception as error:
            # A copy for each: one error raised in all callers would collect the frames of all of them, and
            # Celery, which clears the frames of a failed task's error, would close coroutines that go on.
            broken = isinstance(error, redis.ConnectionError)
            while self._queue and (isinstance(error, UNANSWERED) or (broken and not waits_s)):
                parcel = self._queue.popleft()
                parcel.give([copy(error) for _ in parcel.calls])
            told = [copy(error) for _ in calls]
            again = [i for i, call in enumerate(calls) if call.repeatable]
            if again and waits_s and broken and not isinstance(error, UNANSWERED):
                await asyncio.sleep(waits_s[0])
                for i, reply in zip(again, await self._told([calls[i] for i in again], waits_s[1:]), strict=True):
                    told[i] = reply
            return told

    async def _send(self, commands: Sequence[Command]) -> list[Any]:
        try:
            return await self._exchange(self._client, commands)
        except RuntimeError as error:
            # What uvloop says of writing to a connection that has just been closed, where asyncio has an OSError.
            raise redis.ConnectionError(str(error)) from error
