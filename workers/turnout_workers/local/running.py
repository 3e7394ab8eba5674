"""A Redis, a configuration and workers on this machine, for as long as `with` blocks run."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from redis.exceptions import NoPermissionError

from turnout.ledger import Keyring, Keys, Ledger, run
from turnout.redis_address import connect
from turnout_workers import config
from turnout_workers.local import process
from turnout_workers.local.private_redis import private_redis
from turnout_workers.simulator.scenario import DEFAULT, load

HAND_BACK_S = 45.0
"""How long a worker may take to hand back what it has not ended, before it is killed: longest if Redis is silent."""


@dataclass(frozen=True, slots=True)
class Local:
    """A running Redis and configuration, perhaps with a simulated fleet, and the workers that are started on it."""

    folder: Path
    redis_url: str = field(repr=False)
    shared: bool
    """Whether that Redis was there already, and others may be at work on it."""
    settings: config.Settings
    environ: Mapping[str, str] = field(repr=False)
    """What workers are given on top of ours."""
    ledger: Ledger = field(repr=False)
    children: list[process.Kept] = field(default_factory=list)
    """Redis, if it is ours, and the workers."""

    def tend(self) -> list[str]:
        """Start those again that have ended by themselves; says which. Raises StartFailed if one keeps doing so."""
        return [said for child in self.children if (said := child.tend())]

    @contextlib.contextmanager
    def workers(self, count: int = 1, concurrency: int | None = None) -> Iterator[None]:
        """So many workers that are ready, for as long as the block runs. At its end they drain side by side."""
        ours: list[process.Kept] = []
        try:
            for number in range(1, count + 1):
                log = self.folder / f"worker-{number}.log"
                log.unlink(missing_ok=True)
                # Two runs may share a machine and a Redis, and Celery knows a worker by this name.
                command = [sys.executable, "-m", "turnout", "worker", "-n", f"turnout-{os.getpid()}-{number}@%h"]
                if concurrency is not None:
                    command += ["-c", str(concurrency)]
                ours.append(process.Kept(f"worker {number}", partial(process.start, command, log, self.environ)))
                self._wait_for(ours[-1].process, log)
            self.children.extend(ours)
            yield
        finally:
            process.stop(*(child.process for child in ours), grace_s=self.drain_s + HAND_BACK_S)

    @property
    def drain_s(self) -> float:
        """How long a worker that is to stop lets its calls go on."""
        return self.settings.config.worker.drain_s

    def _wait_for(self, worker: subprocess.Popen[bytes], log: Path) -> None:
        with connect(self.redis_url) as client:
            its = f"{socket.gethostname()}:{worker.pid}:"

            def lives() -> bool:  # by its own word: its log may be that of warnings alone
                return any(name.startswith(its) for name in run(client, [self.ledger.workers()])[0])

            process.wait_until(lives, worker, log, limit_s=60)


def chosen(config_path: Path | None, scenario: Path | None) -> config.Source | Path:
    """A configuration, or the scenario file of a simulated fleet.

    config_path: a turnout.toml. scenario: to be used whatever else there is. With neither: the file in the working
    folder, else what the environment's keys give, else local servers, else the usual simulated fleet.
    """
    return (None if scenario else config.source(os.environ, config_path)) or scenario or DEFAULT


@contextlib.contextmanager
def running(folder: Path, config_path: Path | None, scenario: Path | None) -> Iterator[Local]:
    """Start what is missing, but for workers, and stop it again. Which providers there are: see `chosen`.

    The Redis is that of the environment or the configuration. Without any, or if the fleet is simulated, it is ours.
    Raises RedisError where there is none.
    """
    with contextlib.ExitStack() as stack:
        path, found, ours = folder / "turnout.toml", chosen(config_path, scenario), {}
        if isinstance(found, Path):
            stack.enter_context(_simulator(folder, found, path))
            # Among the jobs of a live fleet, some would be answered by made-up providers, and ours called for money.
            ours = {"REDIS_URL": "", "REDIS_PASSWORD_FILE": ""}
        elif found.made is None:
            path = Path(found.where)
        else:
            path.write_text(found.made, "utf-8")
        settings = config.load(config.Source(str(path)), {**os.environ, **ours})
        ledger = Ledger(Keys(settings.config.namespace), keyring=Keyring.of(os.environ))
        children: list[process.Kept] = []
        if shared := "redis_url" in settings.config.model_fields_set:
            redis_url = settings.config.redis_url
            # Where there is none, a worker would wait for it.
            with connect(redis_url) as client, contextlib.suppress(NoPermissionError):  # it is there
                client.ping()
        else:
            redis_url, server = stack.enter_context(private_redis(folder / "redis"))
            children.append(server)
            _end_old_leases(redis_url, ledger.keys)
        environ = {"REDIS_URL": redis_url, "REDIS_PASSWORD_FILE": "", "TURNOUT_CONFIG": str(path.resolve())}
        environ["TURNOUT_SPOOL"] = str((folder / "spool").resolve())
        yield Local(folder, redis_url, shared, settings, environ, ledger, children)


def _end_old_leases(redis_url: str, keys: Keys) -> None:
    """Whoever held them has died with this Redis, which was private to them: nobody need wait for their end."""
    with connect(redis_url) as client:
        for index in (keys.job_leases, keys.call_lease_ends):
            client.zunionstore(index, {index: 0})


@contextlib.contextmanager
def _simulator(folder: Path, scenario: Path, config_path: Path) -> Iterator[None]:
    """A simulated fleet; `config_path`: where it writes the turnout.toml of those who call it."""
    load(scenario)  # what is wrong with it is said by this process, not in a child's log
    log = folder / "simulator.log"
    for earlier in (log, config_path):
        earlier.unlink(missing_ok=True)
    options = ["--port", "0", "--json", "--scenario", str(scenario), "--toml", str(config_path)]
    child = process.start([sys.executable, "-m", "turnout", "simulate", *options], log)
    try:
        process.wait_until(lambda: "\n" in log.read_text(), child, log, limit_s=30)
        yield
    finally:
        process.stop(child)
