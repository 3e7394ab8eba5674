"""The real Flower, as a process."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.forked import Forked

from turnout_workers.local import process


class Flower:
    """One that wants no login, unless `environ` says how."""

    def __init__(self, folder: Path, port: int, environ: Mapping[str, str]) -> None:
        self.url = f"http://127.0.0.1:{port}"
        environ = {"FLOWER_UNAUTHENTICATED_API": "true", "FLOWER_PORT": str(port), **environ}
        log = folder / "flower.log"
        log.unlink(missing_ok=True)
        self.process = Forked(["flower", "--db", str(folder / "flower")], environ, log)

    def get(self, path: str) -> str:
        """What it answers; nothing while it doesn't."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=30) as reply:
                return str(reply.read().decode())
        except OSError:
            return ""

    def until(self, happens: Callable[[], bool]) -> None:
        process.wait_until(happens, self.process, self.process.log, 90)

    def has_heard_of(self, worker: str) -> bool:
        """It is told of events only when it listens already."""
        return worker in self.get("/api/workers?status=1")


@contextmanager
def flower(folder: Path, environ: Mapping[str, str]) -> Iterator[Flower]:
    """Listening on a port of its own."""
    with process.reserved_port() as port:
        watching = Flower(folder, port, environ)
        try:
            watching.until(lambda: "Flower: " in watching.process.said)
            yield watching
        finally:
            process.stop(watching.process)
