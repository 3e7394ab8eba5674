"""What is wrong with Redis: what its errors mean to those who wait for it, and explanations for the operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import redis.asyncio.sentinel
import redis.sentinel
from redis.exceptions import (
    AuthenticationError,
    ClusterCrossSlotError,
    InvalidResponse,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    RedisError,
)

UNANSWERED = (redis.TimeoutError, redis.sentinel.MasterNotFoundError, redis.asyncio.sentinel.MasterNotFoundError)
"""Raised only after a timeout, while a lost connection is noticed immediately. So what waits behind such an operation
fails with it, instead of waiting as long again."""
LOOK = "look at REDIS_URL, or redis_url"
CLUSTER = "runs in cluster mode, where no job can be accepted; use a single server, with replicas or without"


def takes_no_writes(error: BaseException) -> bool:
    """Whether Redis says that it takes no writes for now: memory or disk is full, or its replicas are gone."""
    return isinstance(error, OutOfMemoryError) or server_message(error).startswith(("MISCONF", "NOREPLICAS"))


def server_message(error: BaseException) -> str:
    """Redis's own words, without the command that redis-py puts before them, which may hold a prompt."""
    return str(error).rpartition(" of pipeline caused error: ")[2]


class _Addressed:
    """A connection whose errors carry a note with the server's address."""

    address: str

    def connect(self, *args: Any, **options: Any) -> None:
        self._noting(super().connect, *args, **options)  # type: ignore[misc]

    def send_packed_command(self, *args: Any, **options: Any) -> None:
        self._noting(super().send_packed_command, *args, **options)  # type: ignore[misc]

    def read_response(self, *args: Any, **options: Any) -> Any:
        return self._noting(super().read_response, *args, **options)  # type: ignore[misc]

    def _noting(self, do: Callable[..., Any], *args: Any, **options: Any) -> Any:
        try:
            return do(*args, **options)
        except RedisError as error:
            error.__notes__ = [f"at {self.address}"]  # once, though one of these methods calls another
            raise


def note_address(pool: redis.ConnectionPool, address: str) -> None:
    """Let `explain` name the server of the pool's connections. address: without its login."""
    base = pool.connection_class
    pool.connection_class = type(base.__name__, (_Addressed, base), {"address": address})


def explain(error: RedisError) -> str:
    """An error of Redis in words for the operator, with what to do."""
    at, message = "".join(f" {note}" for note in getattr(error, "__notes__", ())), server_message(error)
    if isinstance(error, AuthenticationError):
        return f"Redis{at} refuses the login: user or password is missing or wrong; {LOOK}"
    if isinstance(error, redis.ConnectionError | redis.TimeoutError):
        message = message.partition(" : ")[0]  # followed by the internals of each Sentinel's client
        return f"Redis{at} can't be reached ({message}); {LOOK}"
    if isinstance(error, InvalidResponse):
        return f"the server{at} is not Redis ({message}); {LOOK}"
    if "DB index" in message:
        return f"Redis{at} has no database of this number; {LOOK}"
    if takes_no_writes(error):
        return f"Redis{at} takes no writes now ({message}); try again later"
    if isinstance(error, NoPermissionError):
        return f"Redis{at} says: {message}; commands of operators need the role `worker` in REDIS_URL"
    if isinstance(error, ClusterCrossSlotError | MovedError):
        return f"Redis{at} {CLUSTER}"
    if "compiling script" in message:  # because of `#!lua` in the first line
        return f"Redis{at} is too old: 7.0 or newer is needed, or Valkey"
    return f"Redis{at} says: {message}"
