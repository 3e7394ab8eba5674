"""Connections that last: a silent one is kept alive, and a lost one is made again soon."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from celery import Celery
from tests.chaos.stand import standing
from tests.integration.test_crashes import FLEET
from tests.tcp_proxy import between

from turnout import AsyncClient, Client, InferenceRequest
from turnout_workers.celery_app import celery_settings
from turnout_workers.providers import Http, ProviderConfig, build
from turnout_workers.routing.fleet import Endpoint
from turnout_workers.simulator.scenario import Fault, load
from turnout_workers.simulator.server import Simulator

SILENT_S = 25.0
"""After so long a silence a connection gives a sign of life, for firewalls forget it after 30 s and more."""
TIMERS = re.compile(r"^ *\d+: \S+ 0100007F:(\w{4}) 01 \w+:\w+ (\d\d):(\w+)", re.MULTILINE)
"""In the kernel's table, of each open connection: the other side's port, which timer runs (02: the keepalive), and the
hundredths of a second that are left of it."""


def timers(port: int) -> list[tuple[str, float]]:
    """Of all connections to a port of this machine: which timer runs, and for how many seconds."""
    table = Path("/proc/net/tcp").read_text()
    return [(kind, int(left, 16) / 100) for to, kind, left in TIMERS.findall(table) if int(to, 16) == port]


def kept_alive(port: int) -> bool:
    """Whether all connections are. Until what was sent has been acknowledged, another timer runs."""
    ends_at = time.monotonic() + 60
    while not (found := timers(port)) or any(kind != "02" for kind, _ in found):
        if time.monotonic() > ends_at:
            return False
        time.sleep(0.01)
    return all(left_s <= SILENT_S for _, left_s in found)


def test_what_a_client_listens_on_is_kept_alive(redis_url: str) -> None:
    with between(urlsplit(redis_url).port or 0) as proxy, Client(proxy.url) as client:
        with pytest.raises(TimeoutError):
            client.submit("Hello?").wait(0.1)
        assert kept_alive(urlsplit(proxy.url).port or 0)


async def test_what_an_async_client_listens_on_is_kept_alive(redis_url: str) -> None:
    with between(urlsplit(redis_url).port or 0) as proxy:
        async with AsyncClient(proxy.url) as client:
            with pytest.raises(TimeoutError):
                await (await client.submit("Hello?")).wait(0.1)
            assert kept_alive(urlsplit(proxy.url).port or 0)


def test_what_celery_reaches_redis_by_is_kept_alive(redis_url: str) -> None:
    with between(urlsplit(redis_url).port or 0) as proxy:
        app = Celery(set_as_current=False, **celery_settings(proxy.url))
        with app.connection_for_read() as connection:
            connection.default_channel.client.ping()
            assert kept_alive(urlsplit(proxy.url).port or 0)


async def test_a_call_to_a_provider_is_kept_alive_while_it_says_nothing() -> None:
    async with Simulator(load(), "127.0.0.1") as simulator, contextlib.aclosing(Http()) as http:
        name = next(iter(simulator.scenario.providers))
        simulator.fail(name, Fault(kind="hang"))
        account = ProviderConfig(name, "openai", simulator.base_url(name), (Endpoint(name, "m", "m"),))
        call = asyncio.create_task(build(account, http).complete(InferenceRequest(prompt="?")))
        assert await asyncio.to_thread(kept_alive, simulator.port)
        call.cancel()


def test_a_worker_asks_for_its_redis_every_two_seconds_however_long_it_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TURNOUT_LOG_LEVEL", "debug")
    with standing(tmp_path, FLEET) as stand:
        worker = stand.start_worker()
        stand.redis.kill()
        stand.until(lambda: worker.said.count("next attempt to reach Redis in ") > 3)
        stand.redis.restart()
        stand.until(lambda: "jobs are fetched again" in worker.said)
    waits_s = re.findall(r"attempt to reach Redis in (\S+) s", worker.said)
    assert set(waits_s) == {"0", "2"}, "at once, and then as often, where kombu would wait for 2 s more each time"
