"""`turnout doctor`: is all fit for production, and what is to be done?"""

from __future__ import annotations

import asyncio
import sys
from importlib.metadata import version

import click
from redis.exceptions import RedisError

from turnout.redis_address import trouble
from turnout_workers.commands.check import answers_of
from turnout_workers.deployment import deployment
from turnout_workers.state import fitness


@click.command()
def doctor() -> None:
    """Check configuration, keys, Redis and versions, and say what to do. Exit code 1 if something must be done."""
    here = deployment(with_keys=True)
    endpoints = here.fleet.endpoints
    told = [
        (True, f"configuration {here.settings.version} from {here.settings.source.where}"),
        (True, f"{len(endpoints)} endpoints; Python {sys.version.split()[0]}, turnout {version('turnout')}"),
    ]
    answers = asyncio.run(answers_of(here.settings))
    told += [(not wrong, f"{name} {wrong or 'answers'}") for name, wrong in answers.items()]
    if unpriced := ", ".join(endpoint.id for endpoint in endpoints if endpoint.price is None):
        told.append((False, f"no price is known of {unpriced}: set input_usd_per_mtok and output_usd_per_mtok"))
    if here.settings.simulated:
        told.append((False, "some providers are simulated: their answers are made up"))
    try:
        told += fitness.checks(here.client.info())
    except RedisError as error:
        told.append((False, trouble(error)))
    for well, text in told:
        click.echo(f"{'ok  ' if well else 'DO  '} {text}")
    sys.exit(0 if all(well for well, _ in told) else 1)
