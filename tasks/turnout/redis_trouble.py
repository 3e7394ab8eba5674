"""What is wrong with Redis: what its errors mean to whoever waits, and in words for the operator, with which Redis it
is."""

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
"""What takes its time to tell that Redis is silent, where the loss of a connection is seen at once. So what waits for
such a call fails with it, rather than wait as long after it."""
LOOK = "look at REDIS_URL, or redis_url"
CLUSTER = "runs in cluster mode, where no job can be accepted; use a single server, with replicas or without"


def takes_no_writes(error: BaseException) -> bool:
    """Whether it is Redis's word that for now it takes none: its memory or disk is full, or its replicas are gone."""
    return isinstance(error, OutOfMemoryError) or said(error).startswith(("MISCONF", "NOREPLICAS"))


def said(error: BaseException) -> str:
    """Redis's own words, without the command that the client puts before them, which may hold a prompt."""
    return str(error).rpartition(" of pipeline caused error: ")[2]


class _Placed:
    """A connection whose errors have a note of where it leads."""

    place: str

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
            error.__notes__ = [f"at {self.place}"]  # once, though one of these methods calls another
            raise


def note_place(pool: redis.ConnectionPool, place: str) -> None:
    """Let `trouble` know where the errors of the pool's connections come from. place: an address without its login."""
    known = pool.connection_class
    pool.connection_class = type(known.__name__, (_Placed, known), {"place": place})


def trouble(error: RedisError) -> str:
    """An error of Redis in words for the operator, with what to do."""
    at, told = "".join(f" {note}" for note in getattr(error, "__notes__", ())), said(error)
    if isinstance(error, AuthenticationError):
        return f"Redis{at} refuses the login: user or password is missing or wrong; {LOOK}"
    if isinstance(error, redis.ConnectionError | redis.TimeoutError):
        told = told.partition(" : ")[0]  # what follows are the insides of each Sentinel's client
        return f"Redis{at} can't be reached ({told}); {LOOK}"
    if isinstance(error, InvalidResponse):
        return f"what answers{at} is no Redis ({told}); {LOOK}"
    if "DB index" in told:
        return f"Redis{at} has no database of this number; {LOOK}"
    if takes_no_writes(error):
        return f"Redis{at} takes no writes now ({told}); try again later"
    if isinstance(error, NoPermissionError):
        return f"Redis{at} says: {told}; commands of operators need the role `worker` in REDIS_URL"
    if isinstance(error, ClusterCrossSlotError | MovedError):
        return f"Redis{at} {CLUSTER}"
    if "compiling script" in told:  # `#!lua` in the first line
        return f"Redis{at} is too old: 7.0 or newer is needed, or Valkey"
    return f"Redis{at} says: {told}"
