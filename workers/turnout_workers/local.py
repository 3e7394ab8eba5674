"""Everything on one machine: a Redis, a configuration and workers, for as long as a `with` block runs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

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
    children: tuple[process.Kept, ...]
    """Redis, if it is ours, and the workers: started again when they end by themselves."""

    @property
    def given_up(self) -> str | None:
        """What keeps ending by itself, however often it is started."""
        return next((child.name for child in self.children if child.given_up), None)


@contextlib.contextmanager
def running(
    folder: Path,
    config_path: Path | None,
    workers: int = 1,
    concurrency: int | None = None,
    simulate: tuple[str, ...] | None = None,
    tell: Callable[[str], None] = lambda said: None,
) -> Iterator[Local]:
    """Start what is missing, and stop it again.

    config_path: a turnout.toml; None: the one in the working folder, else what the environment's keys give,
    else local servers, else a simulated fleet. simulate: options of `turnout simulate`, to use it in any case.
    tell: hears of children that had to be started again, from another thread.
    """
    children: list[process.Kept] = []
    with contextlib.ExitStack() as stack:
        redis_url = os.environ.get("REDIS_URL", "")
        if not redis_url:
            redis_url, server = stack.enter_context(process.private_redis(folder / "redis"))
            _end_old_leases(redis_url)
            children.append(server)
        path = config_path or (config.find(os.environ, Path.cwd()) if simulate is None else None)
        if path is None:
            tables = _discovered() if simulate is None else {}
            if not tables:
                tables = stack.enter_context(_simulator(folder, simulate or ()))
            path = folder / "turnout.toml"
            path.write_text(discovery.toml(tables), "utf-8")
        environ = {"REDIS_URL": redis_url, "TURNOUT_CONFIG": str(path.resolve())}
        environ["TURNOUT_SPOOL"] = str((folder / "spool").resolve())
        settings = config.load(path, {**os.environ, **environ})
        for number in range(1, workers + 1):
            children.append(stack.enter_context(_worker(folder, environ, number, concurrency)))
        stack.enter_context(process.tending(children, tell))
        yield Local(redis_url, settings, environ, tuple(children))


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
    return fleet.configuration(base_urls or dict.fromkeys(fleet.providers, "http://127.0.0.1:9"))


def _end_old_leases(redis_url: str) -> None:
    """Whoever held them has died with this Redis, which was private to them: nobody need wait for their end."""
    with redis.Redis.from_url(redis_url) as client:
        keys = Keys()
        for index in (keys.leases, keys.expiry):
            client.zunionstore(index, {index: 0})


def _discovered() -> discovery.Tables:
    return discovery.from_environment(os.environ) or asyncio.run(discovery.from_local_servers())


@contextlib.contextmanager
def _simulator(folder: Path, options: tuple[str, ...]) -> Iterator[discovery.Tables]:
    log = folder / "simulator.log"
    log.unlink(missing_ok=True)
    command = [sys.executable, "-m", "turnout", "simulate", "--port", "0", "--json", "--own-ports", *options]
    child = process.start(command, log)
    try:
        process.wait_until(lambda: "\n" in log.read_text(), child, log, limit_s=30)
        told = json.loads(log.read_text().splitlines()[0])
        yield _made_up(options, told["providers"])
    finally:
        process.stop(child)


@contextlib.contextmanager
def _worker(folder: Path, environ: Mapping[str, str], number: int, concurrency: int | None) -> Iterator[process.Kept]:
    log = folder / f"worker-{number}.log"
    log.unlink(missing_ok=True)
    command = [sys.executable, "-m", "turnout", "worker", "-n", f"turnout-{number}@%h"]
    if concurrency is not None:
        command += ["-c", str(concurrency)]
    child = process.Kept(f"worker {number}", lambda: process.start(command, log, environ))
    try:
        process.wait_until(lambda: " ready." in log.read_text("utf-8", "replace"), child.process, log, limit_s=60)
        yield child
    finally:
        process.stop(child.process, grace_s=40)
