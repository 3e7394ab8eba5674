"""Connections that follow the primary. After a failover the old one may keep its connections open, as a replica that
takes no writes, while its address, or Sentinel, leads to the new one. redis-py alone would stay there for ever."""

from __future__ import annotations

from typing import Any

import redis
import redis.asyncio
import redis.sentinel
from redis.exceptions import MasterDownError, ReadOnlyError, ResponseError

REPLICA = "a replica answered, which takes no writes"


def follow(pool: Any) -> None:
    """Make the pool drop a connection as soon as its server turns out to be a replica, so that the next one goes to the
    new primary."""
    blocking = isinstance(pool, redis.ConnectionPool)
    bases: tuple[type, ...] = (_LeaveReplica if blocking else _AsyncLeaveReplica, pool.connection_class)
    if isinstance(pool, redis.sentinel.SentinelConnectionPool | redis.asyncio.sentinel.SentinelConnectionPool):
        bases = (_AskSentinelAgain if blocking else _AsyncAskSentinelAgain, *bases)
    pool.connection_class = type(pool.connection_class.__name__, bases, {})


def _is_from_replica(error: ResponseError) -> bool:
    """UNBLOCKED: what a client blocked in BLPOP gets when its server becomes a replica."""
    return isinstance(error, ReadOnlyError | MasterDownError) or str(error).startswith("UNBLOCKED")


class _LeaveReplica:
    disconnect: Any

    def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return super().read_response(*args, **options)  # type: ignore[misc]
        except ResponseError as error:
            if _is_from_replica(error):
                self.disconnect()
                raise redis.ConnectionError(REPLICA) from None
            raise


class _AsyncLeaveReplica:
    disconnect: Any

    async def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*args, **options)  # type: ignore[misc]
        except ResponseError as error:
            if _is_from_replica(error):
                await self.disconnect(nowait=True)
                raise redis.ConnectionError(REPLICA) from None
            raise


class _AskSentinelAgain:
    """Asks Sentinel also when a connection is lost between two tries; redis-py goes back to the server that it knew."""

    _connect_retry: Any

    def send_packed_command(self, *args: Any, **options: Any) -> None:
        self._connect_retry()  # unless it is connected
        super().send_packed_command(*args, **options)  # type: ignore[misc]


class _AsyncAskSentinelAgain:
    _connect_retry: Any

    async def send_packed_command(self, *args: Any, **options: Any) -> None:
        await self._connect_retry()
        await super().send_packed_command(*args, **options)  # type: ignore[misc]
