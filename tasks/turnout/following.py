"""Connections that follow the primary. In a failover the old one may keep its connections open, as a replica that
takes no writes, while its address, or Sentinel, leads to the new one; redis-py alone would stay there for ever."""

from __future__ import annotations

from typing import Any

import redis
import redis.asyncio
import redis.sentinel
from redis.exceptions import MasterDownError, ReadOnlyError, ResponseError

REPLICA = "a replica answered, which takes no writes"


def follow(pool: Any) -> None:
    """Let the pool's connections end once their server turns out to be a replica, so that they are made anew."""
    blocking = isinstance(pool, redis.ConnectionPool)
    found: tuple[type, ...] = (_Leaving if blocking else _AsyncLeaving, pool.connection_class)
    if isinstance(pool, redis.sentinel.SentinelConnectionPool | redis.asyncio.sentinel.SentinelConnectionPool):
        found = (_Asking if blocking else _AsyncAsking, *found)
    pool.connection_class = type(pool.connection_class.__name__, found, {})


def _of_a_replica(error: ResponseError) -> bool:
    """UNBLOCKED: what a server that becomes one tells those that wait in a BLPOP."""
    return isinstance(error, ReadOnlyError | MasterDownError) or str(error).startswith("UNBLOCKED")


class _Leaving:
    disconnect: Any

    def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return super().read_response(*args, **options)  # type: ignore[misc]
        except ResponseError as error:
            if _of_a_replica(error):
                self.disconnect()
                raise redis.ConnectionError(REPLICA) from None
            raise


class _AsyncLeaving:
    disconnect: Any

    async def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*args, **options)  # type: ignore[misc]
        except ResponseError as error:
            if _of_a_replica(error):
                await self.disconnect(nowait=True)
                raise redis.ConnectionError(REPLICA) from None
            raise


class _Asking:
    """Asks Sentinel also when a connection is lost between two tries: redis-py goes back to the server that it knew."""

    _connect_retry: Any

    def send_packed_command(self, *args: Any, **options: Any) -> None:
        self._connect_retry()  # unless it is connected
        super().send_packed_command(*args, **options)  # type: ignore[misc]


class _AsyncAsking:
    _connect_retry: Any

    async def send_packed_command(self, *args: Any, **options: Any) -> None:
        await self._connect_retry()
        await super().send_packed_command(*args, **options)  # type: ignore[misc]
