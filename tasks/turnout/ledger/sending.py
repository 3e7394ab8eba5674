"""How operations travel to Redis: `run` sends them over a blocking connection, a `Coalescer` over an asyncio one.

Any number of operations shares a round trip. What both have in common is written once, as a coroutine. Over a blocking
connection it never waits for an event loop, so `run_sync` can run it.
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

from turnout.ledger.script import Operation
from turnout.redis_trouble import UNANSWERED
from turnout.uninterrupted import deliver_cancellation_later

T = TypeVar("T")

MAX_BATCH = 128
"""Most operations that a `Coalescer` sends in one round trip. More would keep the loop from everything else."""

RESEND_S = (0.0, 0.5, 1.5)
"""How long a `Coalescer` waits before it resends `repeatable` operations after a connection broke: first not at all,
because other connections may work, then for a Redis that is restarting."""

UNWRITABLE = (UnicodeError, TypeError, DataError)
"""Raised for a command that can't be encoded, for example with a lone surrogate in an id."""

Command = tuple[Any, ...]
SendCommands = Callable[[redis.asyncio.Redis, Sequence[Command]], Awaitable[list[Any]]]
"""Sends commands in one round trip. Returns their replies in order; errors of Redis are returned, not raised."""
Send = Callable[[Sequence[Command]], Awaitable[list[Any]]]
"""`SendCommands` with its client bound."""


def run(client: redis.Redis, operations: Sequence[Operation[T]]) -> list[T]:
    """Send all operations in one round trip, in order; raises the first error after all were sent."""
    # With several scripts, those that Redis doesn't know would be resent after the others, out of order.
    mixed = len({operation.script for operation in operations}) > 1
    replies = run_sync((_with_scripts if mixed else _replies)(partial(_execute, client), operations))
    return [operation.read(reply) for operation, reply in zip(operations, replies, strict=True)]


def run_sync(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never really suspends, without an event loop.

    Async-generator hooks are cleared because a loop running in this thread would otherwise close the generators at its
    own end.
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
    raise RuntimeError("this coroutine was supposed to block, but waited for an event loop")


async def _execute(client: redis.Redis, commands: Sequence[Command]) -> list[Any]:
    """Without redis-py's pipeline: when an exception interrupts it, as from a signal handler, it returns its connection
    with unread replies, which the next caller would take for its own."""
    pool = client.connection_pool
    try:
        connection: Any = pool.get_connection()
    except RedisError:
        raise
    except BaseException:
        pool.disconnect(inuse_connections=False)  # one of them may have an unfinished handshake
        raise
    try:
        send = partial(_write_and_read, client, connection, commands)
        replies: list[Any] = connection.retry.call_with_retry(send, lambda _: connection.disconnect())
        return replies
    except BaseException:
        connection.disconnect()
        raise
    finally:
        pool.release(connection)


def _write_and_read(client: redis.Redis, connection: Any, commands: Sequence[Command]) -> list[Any]:
    connection.send_packed_command(connection.pack_commands(commands))
    replies: list[Any] = []
    for name, *_ in commands:
        try:
            replies.append(client.parse_response(connection, name))  # type: ignore[no-untyped-call]
        except ResponseError as error:
            replies.append(error)
    return replies


async def pipelined(client: redis.asyncio.Redis, commands: Sequence[Command]) -> list[Any]:
    """`SendCommands` by redis-py's own means."""
    async with client.pipeline(transaction=False) as pipe:
        for command in commands:
            pipe.execute_command(*command)
        return list(await pipe.execute(raise_on_error=False))


async def _replies(send: Send, operations: Sequence[Operation[Any]]) -> list[Any]:
    """Send operations in order. Those whose scripts Redis doesn't know, perhaps after a restart, are sent again with
    their scripts."""
    replies = await send([operation.command for operation in operations])
    if refused := [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]:
        for i, reply in zip(refused, await _with_scripts(send, [operations[i] for i in refused]), strict=True):
            replies[i] = reply
    return replies


async def _with_scripts(send: Send, operations: Sequence[Operation[Any]]) -> list[Any]:
    """Send operations in order, after loading their scripts, which Redis then remembers. Raises its error for a script
    that it can't compile."""
    scripts = {operation.script for operation in operations if operation.script}
    loading = [("SCRIPT", "LOAD", script.source) for script in scripts]
    replies = await send([*loading, *(operation.command for operation in operations)])
    loaded, replies = replies[: len(scripts)], replies[len(scripts) :]
    for error in loaded:
        if isinstance(error, Exception):
            raise error
    return replies


@dataclass(slots=True, eq=False)
class _Queued:
    """Operations of one caller, which are sent together. Replies are stored here rather than in the future, which is
    lost if the task that awaits it is cancelled: `uninterrupted` then awaits another. This takes a third of the time of
    the function `uninterrupted`, at every step of a job."""

    operations: Sequence[Operation[Any]]
    answered: asyncio.Future[None]
    uninterrupted: bool = False
    replies: Sequence[Any] = ()
    """One for each operation, once they have arrived."""

    @property
    def abandoned(self) -> bool:
        """Its caller was cancelled and no longer waits. An uninterrupted one is only between two futures."""
        return self.answered.cancelled() and not self.uninterrupted

    def answer(self, replies: Sequence[Any]) -> None:
        self.replies = replies
        if not self.answered.done():
            self.answered.set_result(None)


class Coalescer:
    """Sends the operations of concurrent coroutines together: what arrives during a round trip goes with the next one.

    Order: a coroutine's operations run in the order in which it awaits them, and those of `all` in the order of its
    arguments, except those of a script that Redis doesn't know yet.

    Cancellation: what isn't sent yet is dropped; what was sent completes. `uninterrupted` operations are always sent,
    and their reply is returned.

    Broken connection: Redis may or may not have executed what was sent. `repeatable` operations are sent again, all
    others fail. If that is in vain, or Redis leaves a round trip unanswered, everything queued fails with it.
    """

    def __init__(
        self, client: redis.asyncio.Redis, send_commands: SendCommands = pipelined, max_round_trips: int = 1
    ) -> None:
        """send_commands: a faster way than redis-py's, if there is one. max_round_trips: how many may be under way at a
        time, each on a connection of its own."""
        self._client = client
        self._send_commands = send_commands
        self._max_round_trips = max_round_trips
        self._queue: deque[_Queued] = deque()
        self._senders: set[asyncio.Task[None] | None] = set()

    async def __call__(self, operation: Operation[T]) -> T:
        queued = self._enqueue(operation)
        await queued.answered
        return operation.read(queued.replies[0])

    async def uninterrupted(self, operation: Operation[T]) -> T:
        """For an operation whose outcome must be known: a caller that is cancelled meanwhile still gets the reply, and
        is cancelled where it waits next."""
        queued, interrupted = self._enqueue(operation, uninterrupted=True), False
        while not queued.replies:
            try:
                await queued.answered
            except asyncio.CancelledError:
                interrupted, queued.answered = True, asyncio.get_running_loop().create_future()
        if interrupted:
            deliver_cancellation_later()
        return operation.read(queued.replies[0])

    async def all(self, *operations: Operation[T]) -> list[T]:
        """Several operations, in this order and as few round trips as possible. Raises the first error after all were
        sent, but immediately if Redis leaves a round trip unanswered."""
        replies: list[Any] = []
        for start in range(0, len(operations), MAX_BATCH):
            queued = self._enqueue(*operations[start : start + MAX_BATCH])
            await queued.answered
            if isinstance(error := queued.replies[0], UNANSWERED):
                raise error
            replies += queued.replies
        return [operation.read(reply) for operation, reply in zip(operations, replies, strict=True)]

    def _enqueue(self, *operations: Operation[Any], uninterrupted: bool = False) -> _Queued:
        queued = _Queued(operations, asyncio.get_running_loop().create_future(), uninterrupted)
        self._queue.append(queued)
        if len(self._senders) < self._max_round_trips:
            self._senders.add(asyncio.create_task(self._send_queue()))
        return queued

    async def _send_queue(self) -> None:
        """Send batches until nothing is queued."""
        try:
            await asyncio.sleep(0)  # let every coroutine that is ready now add its operations
            while self._queue:
                batch, operations = list[_Queued](), list[Operation[Any]]()
                while self._queue and len(operations) < MAX_BATCH:
                    if not (queued := self._queue.popleft()).abandoned:
                        batch.append(queued)
                        operations += queued.operations
                replies = iter(await self._replies_or_errors(operations, RESEND_S) if operations else ())
                for queued in batch:
                    queued.answer([*islice(replies, len(queued.operations))])
        finally:
            self._senders.discard(asyncio.current_task())

    async def _replies_or_errors(self, operations: Sequence[Operation[Any]], resend_s: Sequence[float]) -> list[Any]:
        """For each operation its reply, or the error to raise. resend_s: waits before `repeatable` ones are resent."""
        try:
            return await _replies(self._send, operations)
        except UNWRITABLE as error:  # because of one of them none was sent
            if len(operations) == 1:
                return [error]
            return [reply for one in operations for reply in await self._replies_or_errors([one], ())]
        except Exception as error:
            # A copy for each: one error raised in all callers would collect the frames of all of them, and
            # Celery, which clears the frames of a failed task's error, would close coroutines that go on.
            broken = isinstance(error, redis.ConnectionError)
            while self._queue and (isinstance(error, UNANSWERED) or (broken and not resend_s)):
                queued = self._queue.popleft()
                queued.answer([copy(error) for _ in queued.operations])
            replies: list[Any] = [copy(error) for _ in operations]
            repeatable = [i for i, operation in enumerate(operations) if operation.repeatable]
            if repeatable and resend_s and broken and not isinstance(error, UNANSWERED):
                await asyncio.sleep(resend_s[0])
                resent = await self._replies_or_errors([operations[i] for i in repeatable], resend_s[1:])
                for i, reply in zip(repeatable, resent, strict=True):
                    replies[i] = reply
            return replies

    async def _send(self, commands: Sequence[Command]) -> list[Any]:
        try:
            return await self._send_commands(self._client, commands)
        except RuntimeError as error:
            # uvloop raises it for a write to a connection that has just been closed; asyncio raises an OSError.
            raise redis.ConnectionError(str(error)) from error
