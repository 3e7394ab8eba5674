"""What pytest-celery asks of a container, told of processes on this machine, so that its fixtures need no Docker."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import redis
from tests.chaos.stand import Stand
from tests.redis_server import Server


class Node:
    """One process under the plugin's names; each kind says how it is started and which process it is."""

    log: Path

    @property
    def process(self) -> Any:
        raise NotImplementedError

    def start(self) -> None:
        raise NotImplementedError

    @property
    def id(self) -> str:
        return f"{self.process.pid:012d}"

    @property
    def status(self) -> str:
        return "running" if self.process.poll() is None else "exited"

    def logs(self) -> str:
        return self.log.read_text("utf-8", "replace")

    def ready(self) -> bool:
        return self.status == "running"  # `start` has waited for it

    def reload(self) -> None:
        """Nothing: all that a container would be asked about again is read from the process each time."""

    def kill(self, signal: str = "SIGKILL") -> None:
        self.process.send_signal(_number(signal))
        self.process.wait(30)

    def restart(self, timeout: float = 30) -> None:
        if self.status == "running":
            self.process.terminate()
            self.process.wait(timeout)
        self.start()

    def teardown(self) -> None:
        """Nothing: the stand ends all that it has started, and Redis last."""


class LocalRedis(Node):
    """Broker and result backend: one server, as in production."""

    name = "redis"

    def __init__(self, server: Server) -> None:
        self.server = server
        self.log = server.directory / "redis.log"

    @property
    def process(self) -> Any:
        return self.server.proc

    def start(self) -> None:
        self.server.restart()

    @property
    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.server.url)

    @property
    def celeryconfig(self) -> dict[str, str]:
        return {"url": self.server.url, "host_url": self.server.url}


class LocalWorker(Node):
    """`turnout worker`, with a new process and log at each start."""

    name = "turnout worker"

    def __init__(self, stand: Stand) -> None:
        self.stand = stand
        self.start()

    @property
    def process(self) -> Any:
        return self.worker

    def start(self) -> None:
        self.worker = self.stand.start_worker()
        self.log = self.worker.log


def _number(name: str) -> signal.Signals:
    return signal.Signals[name]
