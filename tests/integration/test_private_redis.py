"""The Redis that `turnout run` starts for itself, and the simulated fleet beside it."""

from __future__ import annotations

import os
import socket
import stat
import sys
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry
from tests.chaos.fleet import NOBODY
from tests.redis_server import ONCE

from turnout.ledger import Keys, run
from turnout_workers import local
from turnout_workers.local.private_redis import private_redis
from turnout_workers.simulator.scenario import DEFAULT


def test_other_users_of_the_machine_can_neither_read_nor_ask_it(tmp_path: Path) -> None:
    folder = tmp_path / "redis"
    folder.mkdir(mode=0o755)  # as an older release left it
    with private_redis(folder) as (url, server):
        with redis.Redis.from_url(url) as ours:
            assert ours.ping()
        address = urlsplit(url)
        assert address.port is not None
        with redis.Redis(port=address.port, retry=ONCE) as theirs, pytest.raises(redis.AuthenticationError):
            theirs.ping()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert address.password
        assert address.password not in " ".join(map(str, server.process.args))  # type: ignore[arg-type]


def test_what_it_held_is_there_when_it_is_started_again(tmp_path: Path) -> None:
    for round in range(2):
        with private_redis(tmp_path) as (url, _), redis.Redis.from_url(url) as client:
            assert client.incr("rounds") == round + 1


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a port that is bound can't be kept for a child")
def test_its_port_is_kept_for_it_while_it_is_started_again(tmp_path: Path) -> None:
    soon = Retry(ConstantBackoff(0.1), 600)
    with private_redis(tmp_path) as (url, server), redis.Redis.from_url(url, retry=soon) as client:
        server.process.kill()
        server.process.wait(60)
        with socket.socket() as another, pytest.raises(OSError, match="in use"):
            another.bind(("127.0.0.1", urlsplit(url).port))
        assert server.restart_if_ended()
        assert client.ping()


def test_one_of_this_machine_which_may_be_too_old_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "bin" / "redis-server"
    old.parent.mkdir()
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", f"{old.parent}{os.pathsep}{os.environ['PATH']}")
    with private_redis(tmp_path / "redis") as (url, _), redis.Redis.from_url(url) as client:
        assert client.ping()


def test_there_is_a_redis_before_there_is_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    config = tmp_path / "turnout.toml"
    config.write_text(NOBODY)
    with local.running(tmp_path, config, None) as here, redis.Redis.from_url(here.redis_url) as client:
        assert len(run(client, [here.ledger.workers()])[0]) == 0
        with here.workers():
            assert len(run(client, [here.ledger.workers()])[0]) == 1


@pytest.mark.parametrize("namespace", ["turnout", "mine"])
def test_nobody_waits_for_the_leases_of_those_who_died_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, namespace: str
) -> None:
    monkeypatch.setenv("TURNOUT_NAMESPACE", namespace)
    monkeypatch.delenv("REDIS_URL", raising=False)
    config = tmp_path / "turnout.toml"
    config.write_text(NOBODY)
    held = Keys(namespace).job_leases
    with private_redis(tmp_path / "redis") as (url, _), redis.Redis.from_url(url) as client:
        client.zadd(held, {"job": 2e12})
    with local.running(tmp_path, config, None) as here, redis.Redis.from_url(here.redis_url) as client:
        assert client.zscore(held, "job") == 0


def test_a_simulated_fleet_is_found_again_when_it_is_started_again(tmp_path: Path) -> None:
    for _ in range(2):  # each time at another port
        with local.running(tmp_path, None, DEFAULT) as here:
            urls = [table.base_url for table in here.settings.config.providers.values() if table.kind == "openai"]
            assert urls
            assert {urlopen(f"{url}/models").status for url in urls} == {200}
