"""`turnout worker`: one worker process, in this terminal or under a supervisor."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click
from celery.utils.nodenames import default_nodename, host_format

from turnout.ledger import Keyring
from turnout.request import Lane
from turnout_workers.config import fleet
from turnout_workers.monitoring import logs


@click.command()
@click.option("--config", "path", type=click.Path(path_type=Path, dir_okay=False), help="The turnout.toml to use.")
@click.option("-c", "--concurrency", type=click.IntRange(1, 10_000), help="Jobs in flight in this process.")
@click.option("--lanes", default=",".join(Lane), help="Lanes to serve, comma-separated.")
@click.option("-n", "--name", default="turnout@%h", help="Celery's node name; each process needs its own.")
def worker(path: Path | None, concurrency: int | None, lanes: str, name: str) -> None:
    """Run jobs until stopped. SIGTERM, SIGHUP or Ctrl-C lets calls in flight finish; a second one hands jobs back."""
    queues = [lane.strip() for lane in lanes.split(",")]
    if unknown := set(queues) - set(Lane):
        raise click.ClickException(f"unknown lane {', '.join(sorted(unknown))}: choose from {', '.join(Lane)}")
    if path is not None:
        os.environ["TURNOUT_CONFIG"] = str(path)
    from turnout_workers.app import app, settings  # reads the environment set above
    from turnout_workers.pool import TaskPool

    fleet(settings)  # report errors in it and in the keyring now, not on the loop
    Keyring.of(os.environ)
    slots = concurrency or settings.config.worker.concurrency
    level, form = settings.config.monitoring.log_level.upper(), settings.config.monitoring.log_format
    logs.configure(level, form)  # Celery does so only after its first warnings

    # Celery's own worker, built as its command builds it. That command imports more, such as a prompt and plug-ins:
    # half a second and 20 MB a process.
    celery_worker = app.Worker(
        hostname=host_format(default_nodename(name)),
        pool_cls=TaskPool,
        concurrency=slots,
        queues=",".join(queues),
        loglevel=level,
        quiet=form == "json",  # its banner isn't JSON
        without_gossip=True,
        without_mingle=True,
    )
    celery_worker.start()
    sys.exit(celery_worker.exitcode)
