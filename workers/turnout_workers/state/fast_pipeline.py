"""Many commands in one round trip to Redis, for a fraction of the CPU time that redis-py's pipeline takes.

redis-py's asyncio pipeline packs in Python what hiredis packs in C, and runs a timeout and three coroutines for each
reply; a worker sends five commands a job. Here all replies share one deadline. redis-py still connects, retries and
reads.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import redis.asyncio
from hiredis import pack_command
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ResponseError

from turnout.redis_trouble import takes_no_writes


class TakesNoWrites(redis.ConnectionError):
    """A Redis that takes no writes is treated as one that is away: what was to be written waits."""


async def send_commands(client: redis.asyncio.Redis, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Send all, and give a reply for each; where Redis refused a command, the error, unraised. See `sending.Exchange`.

    Raises what redis-py would, ConnectionError or TimeoutError, after as many tries as the client makes.
    """
    packed = b"".join(map(pack_command, commands))
    pool = client.connection_pool
    connection = await pool.get_connection()  # type: ignore[no-untyped-call]
    try:
        replies = await connection.retry.call_with_retry(
            lambda: _send_packed(connection, packed, len(commands)), lambda _: connection.disconnect()
        )
    finally:
        await pool.release(connection)
    callbacks = client.response_callbacks
    return [
        reply if isinstance(reply, Exception) or command[0] not in callbacks else callbacks[command[0]](reply)
        for command, reply in zip(commands, replies, strict=True)
    ]


async def _send_packed(connection: AbstractConnection, packed: bytes, count: int) -> list[Any]:
    await connection.send_packed_command(packed)
    replies: list[Any] = []
    try:
        async with asyncio.timeout(connection.socket_timeout):
            while len(replies) < count:
                try:
                    # No timeout for a single read: there is one for all of them.
                    replies.append(await connection.read_response(timeout=math.inf))
                except ResponseError as error:
                    away = TakesNoWrites(f"Redis takes no writes: {error}")
                    replies.append(away if takes_no_writes(error) else error)
    except TimeoutError:
        await connection.disconnect(nowait=True)
        raise redis.TimeoutError("Timeout reading from Redis") from None
    return replies
