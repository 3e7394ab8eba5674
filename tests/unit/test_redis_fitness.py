"""What a production Redis must have, by its INFO; the good one is what a real server of ours says."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from turnout_workers.state import fitness


@pytest.fixture
def info(flushed: redis.Redis) -> dict[str, Any]:
    return dict(flushed.info())


def wrong(info: dict[str, Any]) -> list[str]:
    return [text for well, text in fitness.checks(info) if not well]


def test_a_durable_redis_that_evicts_nothing_is_fit(info: dict[str, Any]) -> None:
    assert not wrong(info)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"valkey_version": None, "redis_version": "6.2.14"}, "Redis or Valkey 6.2.14; 7.0 or newer is needed"),
        ({"role": "slave"}, "it may refuse writes: it is a replica; let REDIS_URL name the primary"),
        ({"aof_last_write_status": "err"}, "it may refuse writes: it can't write its append-only file; free its disk"),
        (
            {"rdb_last_bgsave_status": "err"},
            "it may refuse writes: its last snapshot failed; free its disk, or set stop-writes-on-bgsave-error no",
        ),
        (
            {"min_slaves_good_slaves": 0},
            "it may refuse writes: no replica follows it; bring one back, or set min-replicas-to-write 0",
        ),
        ({"aof_enabled": 0}, "the append-only file is off: accepted jobs die with Redis; set appendonly yes"),
        (
            {"maxmemory_policy": "allkeys-lru"},
            "maxmemory-policy is allkeys-lru: jobs would vanish; set it to noeviction",
        ),
        (
            {"maxmemory": 100_000_000, "used_memory": 81_000_000},
            "81 MB used of 100 MB: no new jobs are accepted above 80%; raise maxmemory, or purge",
        ),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do(info: dict[str, Any], fields: dict[str, Any], text: str) -> None:
    assert wrong(info | fields) == [text]
