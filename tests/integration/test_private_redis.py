"""The Redis that `turnout run` starts for itself."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis

from turnout_workers.local.private_redis import private_redis


def test_other_users_of_the_machine_can_neither_read_nor_ask_it(tmp_path: Path) -> None:
    folder = tmp_path / "redis"
    folder.mkdir(mode=0o755)  # as an older release left it
    with private_redis(folder) as (url, server):
        with redis.Redis.from_url(url) as ours:
            assert ours.ping()
        address = urlsplit(url)
        assert address.port is not None
        with redis.Redis(port=address.port) as theirs, pytest.raises(redis.AuthenticationError):
            theirs.ping()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert address.password
        assert address.password not in " ".join(map(str, server.process.args))  # type: ignore[arg-type]


def test_what_it_held_is_there_when_it_is_started_again(tmp_path: Path) -> None:
    for round in range(2):
        with private_redis(tmp_path) as (url, _), redis.Redis.from_url(url) as client:
            assert client.incr("rounds") == round + 1


def test_one_of_this_machine_which_may_be_too_old_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "bin" / "redis-server"
    old.parent.mkdir()
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", f"{old.parent}{os.pathsep}{os.environ['PATH']}")
    with private_redis(tmp_path / "redis") as (url, _), redis.Redis.from_url(url) as client:
        assert client.ping()
