"""Many commands in one round trip to Redis, for a fraction of the processor time that redis-py's pipeline takes.

Its asyncio pipeline packs in Python what hiredis packs in C, and runs a timeout and three coroutines for each reply;
a worker makes five calls a job. Here one deadline is for all. Connections, retries and reading stay redis-py's.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import redis.asyncio
from hiredis import pack_command
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import OutOfMemoryError, ReadOnlyError, ResponseError


async def exchange(client: redis.asyncio.Redis, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Send all, and give a reply for each: what Redis refused as the error, unraised. See `sending.Exchange`.

    Raises what redis-py would: ConnectionError, TimeoutError, after as many tries as the client makes.
    """
    packed = b"".join(map(pack_command, commands))
    pool = client.connection_pool
    connection = await pool.get_connection()  # type: ignore[no-untyped-call]
    try:
        replies = await connection.retry.call_with_retry(
            lambda: _exchange(connection, packed, len(commands)), lambda _: connection.disconnect()
        )
    finally:
        await pool.release(connection)
    callbacks = client.response_callbacks
    return [
        reply if isinstance(reply, Exception) or command[0] not in callbacks else callbacks[command[0]](reply)
        for command, reply in zip(commands, replies, strict=True)
    ]


def _away(error: ResponseError) -> Exception:
    """A Redis that takes no writes now, its memory or disk full, or a replica since a failover, is to a worker one that
    is away: what was to be written waits."""
    if isinstance(error, OutOfMemoryError | ReadOnlyError) or str(error).startswith(("MISCONF", "NOREPLICAS")):
        return redis.ConnectionError(f"Redis takes no writes: {error}")
    return error


async def _exchange(connection: AbstractConnection, packed: bytes, count: int) -> list[Any]:
    await connection.send_packed_command(packed)
    replies: list[Any] = []
    try:
        async with asyncio.timeout(connection.socket_timeout):
            while len(replies) < count:
                try:
                    # The read's own timeout off: it is one for each reply, where here is one for all.
                    replies.append(await connection.read_response(timeout=math.inf))
                except ResponseError as error:
                    replies.append(_away(error))
    except TimeoutError:
        await connection.disconnect(nowait=True)
        raise redis.TimeoutError("Timeout reading from Redis") from None
    return replies
