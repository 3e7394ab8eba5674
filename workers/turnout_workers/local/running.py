"""Redis, a configuration and workers on this machine, which run as long as `with` blocks."""

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
"""How long a worker may take to hand its jobs back before it is killed: longest if Redis is silent."""


@dataclass(frozen=True, slots=True)
class Local:
    """A running Redis and a configuration, perhaps a simulated fleet, and the workers started on them."""

    folder: Path
    redis_url: str = field(repr=False)
    shared: bool
    """Whether that Redis existed before, so that others may be using it."""
    settings: config.Settings
    environ: Mapping[str, str] = field(repr=False)
    """Variables for workers, on top of ours."""
    ledger: Ledger = field(repr=False)
    children: list[process.Supervised] = field(default_factory=list)
    """Redis, if it is ours, and the workers."""

    def restart_ended(self) -> list[str]:
        """Restart children that ended by themselves. Returns what happened. Raises StartFailed if one keeps ending."""
        return [event for child in self.children if (event := child.restart_if_ended())]

    @contextlib.contextmanager
    def workers(self, count: int = 1, concurrency: int | None = None) -> Iterator[None]:
        """Run `count` workers while the block runs; it begins when they are ready. At its end they drain together."""
        ours: list[process.Supervised] = []
        try:
            for number in range(1, count + 1):
                log = self.folder / f"worker-{number}.log"
                log.unlink(missing_ok=True)
                # Two runs may share a machine and a Redis, and Celery identifies a worker by this name.
                command = [sys.executable, "-m", "turnout", "worker", "-n", f"turnout-{os.getpid()}-{number}@%h"]
                if concurrency is not None:
                    command += ["-c", str(concurrency)]
                ours.append(process.Supervised(f"worker {number}", partial(process.start, command, log, self.environ)))
                self._wait_for(ours[-1].process, log)
            self.children.extend(ours)
            yield
        finally:
            process.stop(*(child.process for child in ours), grace_s=self.drain_s + HAND_BACK_S)

    @property
    def drain_s(self) -> float:
        """How long a stopping worker lets its calls go on."""
        return self.settings.config.worker.drain_s

    def _wait_for(self, worker: subprocess.Popen[bytes], log: Path) -> None:
        with connect(self.redis_url) as client:
            prefix = f"{socket.gethostname()}:{worker.pid}:"

            def is_alive() -> bool:  # by its own report: its log may contain only warnings
                return any(name.startswith(prefix) for name in run(client, [self.ledger.workers()])[0])

            process.wait_until(is_alive, worker, log, limit_s=60)


def choose_fleet(config_path: Path | None, scenario: Path | None) -> config.Source | Path:
    """A configuration, or the scenario file of a simulated fleet.

    config_path: a turnout.toml. scenario: used whatever else there is. With neither: the turnout.toml in the working
    folder, else providers whose keys are in the environment, else local servers, else the default simulated fleet.
    """
    return (None if scenario else config.source(os.environ, config_path)) or scenario or DEFAULT


@contextlib.contextmanager
def running(folder: Path, config_path: Path | None, scenario: Path | None) -> Iterator[Local]:
    """Start what is missing except workers, and stop it at the end. `choose_fleet` chooses the providers.

    The Redis is that of the environment or the configuration. Without any, or if the fleet is simulated, a private one
    is started. Raises RedisError if a configured one can't be reached.
    """
    with contextlib.ExitStack() as stack:
        path, fleet, overrides = folder / "turnout.toml", choose_fleet(config_path, scenario), {}
        if isinstance(fleet, Path):
            stack.enter_context(_simulator(folder, fleet, path))
            # On a live fleet's Redis, its jobs would get made-up answers, and ours would cost money.
            overrides = {"REDIS_URL": "", "REDIS_PASSWORD_FILE": ""}
        elif fleet.made is None:
            path = Path(fleet.where)
        else:
            path.write_text(fleet.made, "utf-8")
        settings = config.load(config.Source(str(path)), {**os.environ, **overrides})
        ledger = Ledger(Keys(settings.config.namespace), keyring=Keyring.of(os.environ))
        children: list[process.Supervised] = []
        if shared := "redis_url" in settings.config.model_fields_set:
            redis_url = settings.config.redis_url
            # A worker would wait for an absent Redis: fail now instead.
            with connect(redis_url) as client, contextlib.suppress(NoPermissionError):  # then it is there
                client.ping()
        else:
            redis_url, server = stack.enter_context(private_redis(folder / "redis"))
            children.append(server)
            _end_old_leases(redis_url, ledger.keys)
        environ = {"REDIS_URL": redis_url, "REDIS_PASSWORD_FILE": "", "TURNOUT_CONFIG": str(path.resolve())}
        environ["TURNOUT_SPOOL"] = str((folder / "spool").resolve())
        yield Local(folder, redis_url, shared, settings, environ, ledger, children)


def _end_old_leases(redis_url: str, keys: Keys) -> None:
    """End them now: their holders have died with this Redis, which was private to them."""
    with connect(redis_url) as client:
        for index in (keys.job_leases, keys.call_lease_ends):
            client.zunionstore(index, {index: 0})


@contextlib.contextmanager
def _simulator(folder: Path, scenario: Path, config_path: Path) -> Iterator[None]:
    """A simulated fleet; `config_path`: where it writes a turnout.toml for its callers."""
    load(scenario)  # so that this process reports its errors, not a child's log
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
