"""`turnout flower`: Flower, set up for this deployment, with a tab of the providers."""

from __future__ import annotations

import os
from pathlib import Path

import click

from turnout_workers.config.credentials import secret_text
from turnout_workers.deployment import deployment

LOOPBACK = ("localhost", "127.0.0.1", "::1")


@click.command()
@click.option("--address", envvar="FLOWER_ADDRESS", default="127.0.0.1", help="Address to listen on.")
@click.option("--port", envvar="FLOWER_PORT", type=click.IntRange(0, 65_535), default=5555, help="Port to listen on.")
@click.option(
    "--db",
    envvar="FLOWER_DB",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path(".turnout/flower"),
    help="File in which Flower keeps what it has seen.",
)
def flower(address: str, port: int, db: Path) -> None:
    """Watch queues, jobs, workers and providers in a browser. No API key is needed.

    Any address but loopback needs a login: FLOWER_BASIC_AUTH=user:password, or FLOWER_BASIC_AUTH_FILE.
    """
    if file := os.environ.pop("FLOWER_BASIC_AUTH_FILE", None):
        os.environ["FLOWER_BASIC_AUTH"] = secret_text(file, f"FLOWER_BASIC_AUTH_FILE={file}")
    if address not in LOOPBACK and not (os.environ.get("FLOWER_BASIC_AUTH") or os.environ.get("FLOWER_AUTH")):
        raise click.ClickException(
            f"{address} can be reached by others: set FLOWER_BASIC_AUTH=user:password (or FLOWER_BASIC_AUTH_FILE, or "
            "FLOWER_AUTH for OAuth), or listen on 127.0.0.1"
        )
    here = deployment()
    _ = here.fleet  # fail now if there is none, not in the tab
    from turnout_workers.monitoring.flower import serve

    try:
        serve(here, address, port, db, lambda url: click.echo(f"Flower: {url}"))
    except OSError as error:
        raise click.ClickException(f"{error.strerror or error}; see --address, --port and --db") from None
