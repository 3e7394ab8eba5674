"""What is wrong with Redis: what its errors mean to whoever waits, and in words for the operator."""

from __future__ import annotations

import redis.asyncio.sentinel
import redis.sentinel
from redis.exceptions import ClusterCrossSlotError, MovedError, NoPermissionError, OutOfMemoryError, RedisError

UNANSWERED = (redis.TimeoutError, redis.sentinel.MasterNotFoundError, redis.asyncio.sentinel.MasterNotFoundError)
"""What takes its time to tell that Redis is silent, where the loss of a connection is seen at once. So what waits for
such a call fails with it, rather than wait as long after it."""
CLUSTER = "runs in cluster mode, where no job can be accepted; use a single server, with replicas or without"


def takes_no_writes(error: BaseException) -> bool:
    """Whether it is Redis's word that for now it takes none: its memory or disk is full, or its replicas are gone."""
    return isinstance(error, OutOfMemoryError) or said(error).startswith(("MISCONF", "NOREPLICAS"))


def said(error: BaseException) -> str:
    """Redis's own words, without the command that the client puts before them, which may hold a prompt."""
    return str(error).rpartition(" of pipeline caused error: ")[2]


def trouble(error: RedisError) -> str:
    """An error of Redis in words for the operator, with what to do."""
    if isinstance(error, redis.ConnectionError | redis.TimeoutError):
        return f"Redis can't be reached ({error}); set REDIS_URL, or redis_url"
    if takes_no_writes(error):
        return f"Redis takes no writes now ({said(error)}); try again later"
    if isinstance(error, NoPermissionError):
        return f"{said(error)}; commands of operators need the role `worker` in REDIS_URL"
    if isinstance(error, ClusterCrossSlotError | MovedError):
        return f"this Redis {CLUSTER}"
    if "compiling script" in said(error):  # `#!lua` in the first line
        return "this Redis is too old: 7.0 or newer is needed, or Valkey"
    return said(error)
