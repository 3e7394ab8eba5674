"""`turnout worker`: one worker process, in this terminal or under a supervisor."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from turnout.errors import TurnoutError
from turnout.request import Lane
from turnout_workers import config


@click.command()
@click.option("--config", "path", type=click.Path(path_type=Path, dir_okay=False), help="turnout.toml")
@click.option("-c", "--concurrency", type=click.IntRange(1, 10_000), help="Jobs in flight in this process.")
@click.option("--lanes", default=",".join(Lane), show_default=True, help="Lanes to serve, most urgent first, by comma.")
@click.option("-n", "--name", default="turnout@%h", show_default=True, help="Celery's node name.")
@click.option("-l", "--loglevel", help="As the configuration says, if not given.")
def worker(path: Path | None, concurrency: int | None, lanes: str, name: str, loglevel: str | None) -> None:
    """Serve jobs until stopped. SIGTERM lets calls in flight end; a second one hands everything back at once."""
    if path is not None:
        os.environ["TURNOUT_CONFIG"] = str(path)
    try:
        settings = config.configured(os.environ)
    except TurnoutError as error:
        raise click.ClickException(str(error)) from None
    os.environ["CELERY_CUSTOM_WORKER_POOL"] = "turnout_workers.pool:TaskPool"
    slots = concurrency or settings.file.worker.concurrency
    arguments = ["-A", "turnout_workers.app:app", "worker", "-P", "custom", "-c", str(slots), "-Q", lanes]
    arguments += [
        "-n",
        name,
        "-l",
        (loglevel or settings.file.monitoring.log_level).upper(),
        "--without-gossip",
        "--without-mingle",
    ]
    os.execv(sys.executable, [sys.executable, "-m", "celery", *arguments])  # noqa: S606  (the same process goes on)
