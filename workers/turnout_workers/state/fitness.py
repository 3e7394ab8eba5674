"""What production needs from Redis, checked by each worker when it starts, and by `turnout doctor`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from turnout.redis_trouble import CLUSTER

MIN_VERSION = (7, 0)
"""`#!lua` flags need it."""
FULL_SHARE = 0.8
"""Share of Redis's memory above which no new job is accepted. Settling needs the rest."""


def version(info: dict[str, Any]) -> str:
    """The version of Redis, or of Valkey, which also reports the version of Redis that it is compatible with."""
    return str(info.get("valkey_version") or info["redis_version"])


def is_supported(info: dict[str, Any]) -> bool:
    return tuple(int(part) for part in version(info).split(".")[:2]) >= MIN_VERSION


def is_full(info: dict[str, Any]) -> bool:
    limit = int(info.get("maxmemory", 0))
    return bool(limit) and int(info["used_memory"]) >= FULL_SHARE * limit


def eviction(info: dict[str, Any]) -> tuple[bool, str]:
    """Whether it keeps its data when its memory is full, and what to do if not."""
    policy = str(info.get("maxmemory_policy", "unknown"))
    keeps = policy == "noeviction"
    return keeps, f"maxmemory-policy is {policy}" + ("" if keeps else ": jobs would vanish; set it to noeviction")


def _no_writes(info: dict[str, Any]) -> str:
    """Why it refuses writes at the moment, and what to do. Empty if it seems to take them."""
    if info.get("role") == "slave":
        return "it is a replica; let REDIS_URL name the primary"
    if info.get("aof_last_write_status", "ok") != "ok":
        return "it can't write its append-only file; free its disk"
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        return "its last snapshot failed; free its disk, or set stop-writes-on-bgsave-error no"
    if not int(info.get("min_slaves_good_slaves", 1)):  # only there if min-replicas-to-write is set
        return "no replica follows it; bring one back, or set min-replicas-to-write 0"
    return ""


def checks(info: dict[str, Any]) -> Iterator[tuple[bool, str]]:
    """Check Redis's INFO. Yields for each check whether it passed, and the finding; if not, also what to do."""
    current = is_supported(info)
    yield current, f"Redis or Valkey {version(info)}" + ("" if current else "; 7.0 or newer is needed")
    if int(info.get("cluster_enabled", 0)):
        yield False, f"it {CLUSTER}"
    if obstacle := _no_writes(info):
        yield False, f"it may refuse writes: {obstacle}"
    durable = bool(int(info.get("aof_enabled", 0)))
    off = "off: accepted jobs die with Redis; set appendonly yes"
    yield durable, f"the append-only file is {'on' if durable else off}"
    yield eviction(info)
    limit, full = int(info.get("maxmemory", 0)), is_full(info)
    of = f"{limit / 1e6:.0f} MB" if limit else "no limit"
    advice = f": no new jobs are accepted above {FULL_SHARE:.0%}; raise maxmemory, or purge" if full else ""
    yield not full, f"{int(info['used_memory']) / 1e6:.0f} MB used of {of}{advice}"
