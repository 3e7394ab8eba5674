"""`turnout doctor`: is all fit for production, and what is to be done?"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version

import click
import redis

from turnout.errors import Unreadable
from turnout.ledger import Call
from turnout.request import CONTRACT_VERSION
from turnout_workers.commands.check import answers_of
from turnout_workers.commands.screen import counted
from turnout_workers.deployment import Deployment, deployment
from turnout_workers.state import fitness

LOOKED_AT = 1000
"""Records of each index, the oldest first."""


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
        told += _untouched(here)
    except redis.ResponseError as error:
        told.append((False, f"Redis doesn't let us look ({error}); ask again as a user who may"))
    except redis.RedisError as error:
        told.append((False, f"Redis can't be reached: {error}; set REDIS_URL, or redis_url in turnout.toml"))
    for well, text in told:
        click.echo(f"{'ok  ' if well else 'DO  '} {text}")
    sys.exit(0 if all(well for well, _ in told) else 1)


def _untouched(here: Deployment) -> Iterator[tuple[bool, str]]:
    """Live jobs that are left untouched: another release wrote their records, or a key is missing to read them."""
    keys = here.ledger.keys
    indexes = (*keys.all_pending, keys.leases, keys.parked)
    *found, parked = here.ask(*(Call(("ZRANGE", index, 0, LOOKED_AT - 1), list) for index in indexes))
    ids = {job_id.decode() for ids in found for job_id in ids} | {spot.decode().split(" ", 2)[2] for spot in parked}
    records = here.ask(*(Call(("HMGET", keys.job(job_id), "v", "seal"), list) for job_id in ids))
    seals = Counter(seal.decode() for _, seal in records if seal)
    for ref, count in sorted(seals.items()):
        if ref not in here.ledger.keyring.refs:
            why = Unreadable("their requests", ref, here.ledger.keyring.refs)
            yield False, f"{counted(count, 'job')}: {why}, for the workers"
    versions = Counter(int(v or 0) for v, _ in records)
    for known, count in sorted(versions.items()):
        if known not in (0, CONTRACT_VERSION):  # 0: gone meanwhile
            what = f"{counted(count, 'job')} with a record of version {known}"
            yield False, f"{what}, and this Turnout knows version {CONTRACT_VERSION}: let workers run that know it"
