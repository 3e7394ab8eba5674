"""Everything on one machine: a Redis, a configuration and workers, for as long as a `with` block runs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

import redis

from turnout.ledger import Keys
from turnout_workers import config, discovery, process
from turnout_workers.simulator import scenario


@dataclass(frozen=True, slots=True)
class Local:
    """A running set of parts."""

    redis_url: str
    settings: config.Settings
    environ: Mapping[str, str]
    """What the workers were given on top of ours."""
    workers: tuple[Popen[bytes], ...]
    simulator_url: str | None
    """Where the simulated fleet is, if there is one."""

    @property
    def died(self) -> Popen[bytes] | None:
        """A worker that ended by itself, or None."""
        return next((worker for worker in self.workers if worker.poll() is not None), None)


@contextlib.contextmanager
def running(
    folder: Path,
    config_path: Path | None,
    workers: int = 1,
    concurrency: int | None = None,
    simulate: tuple[str, ...] | None = None,
) -> Iterator[Local]:
    """Start what is missing, and stop it again.

    config_path: a turnout.toml; None: the one in the working folder, else what the environment's keys give,
    else local servers, else a simulated fleet. simulate: options of `turnout simulate`, to use it in any case.
    """
    with contextlib.ExitStack() as stack:
        redis_url = os.environ.get("REDIS_URL", "")
        if not redis_url:
            redis_url = stack.enter_context(process.private_redis(folder / "redis"))
            _end_old_leases(redis_url)
        simulator_url = None
        path = config_path or (config.find(os.environ, Path.cwd()) if simulate is None else None)
        if path is None:
            tables = _discovered() if simulate is None else {}
            if not tables:
                simulator_url, tables = stack.enter_context(_simulator(folder, simulate or ()))
            path = folder / "turnout.toml"
            path.write_text(discovery.toml(tables), "utf-8")
        environ = {"REDIS_URL": redis_url, "TURNOUT_CONFIG": str(path.resolve())}
        environ["TURNOUT_SPOOL"] = str((folder / "spool").resolve())
        settings = config.load(path, {**os.environ, **environ})
        started = tuple(
            stack.enter_context(_worker(folder, environ, number, concurrency)) for number in range(1, workers + 1)
        )
        yield Local(redis_url, settings, environ, started, simulator_url)


def configuration(config_path: Path | None, simulate: tuple[str, ...] | None) -> config.Settings:
    """The configuration with which `running` would run, without starting anything."""
    path = config_path or (config.find(os.environ, Path.cwd()) if simulate is None else None)
    if path is not None:
        return config.load(path, os.environ)
    tables = (_discovered() if simulate is None else {}) or _made_up(simulate or (), None)
    return config.settings(discovery.toml(tables), "the environment", os.environ)


def _made_up(options: tuple[str, ...], base_urls: Mapping[str, str] | None) -> discovery.Tables:
    """The simulated fleet's tables; without addresses for a fleet that isn't running."""
    file = Path(options[options.index("--scenario") + 1]) if "--scenario" in options else scenario.DEFAULT
    fleet = scenario.load(file)
    return discovery.simulated(base_urls or dict.fromkeys(fleet.providers, "http://127.0.0.1:9"), fleet)


def _end_old_leases(redis_url: str) -> None:
    """Whoever held them has died with this Redis, which was private to them: nobody need wait for their end."""
    with redis.Redis.from_url(redis_url) as client:
        keys = Keys()
        for index in (keys.leases, keys.expiry):
            client.zunionstore(index, {index: 0})


def _discovered() -> discovery.Tables:
    return discovery.from_environment(os.environ) or asyncio.run(discovery.from_local_servers())


@contextlib.contextmanager
def _simulator(folder: Path, options: tuple[str, ...]) -> Iterator[tuple[str, discovery.Tables]]:
    log = folder / "simulator.log"
    log.unlink(missing_ok=True)
    command = [sys.executable, "-m", "turnout", "simulate", "--port", "0", "--json", "--own-ports"]
    command += ["--die-with-parent", *options]
    child = process.start(command, log)
    try:
        process.wait_until(lambda: "\n" in log.read_text(), child, log, limit_s=30)
        told = json.loads(log.read_text().splitlines()[0])
        yield told["url"], _made_up(options, told["providers"])
    finally:
        process.stop(child)


@contextlib.contextmanager
def _worker(folder: Path, environ: Mapping[str, str], number: int, concurrency: int | None) -> Iterator[Popen[bytes]]:
    log = folder / f"worker-{number}.log"
    log.unlink(missing_ok=True)
    command = [sys.executable, "-m", "turnout", "worker", "-n", f"turnout-{number}@%h"]
    if concurrency is not None:
        command += ["-c", str(concurrency)]
    child = process.start(command, log, environ)
    try:
        process.wait_until(lambda: " ready." in log.read_text("utf-8", "replace"), child, log, limit_s=60)
        yield child
    finally:
        process.stop(child, grace_s=40)
