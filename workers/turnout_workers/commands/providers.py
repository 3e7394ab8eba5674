"""`turnout providers`: what is configured, and whether it answers. `turnout doctor`: is all fit for production?"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version

import click
import redis
from rich.console import Console

from turnout.errors import Unreadable
from turnout.ledger import Read
from turnout.request import CONTRACT_VERSION
from turnout_workers import redis_fitness
from turnout_workers.commands.screen import add, table
from turnout_workers.commands.setting import Setting, setting
from turnout_workers.endpoints import accounts
from turnout_workers.providers import Http, build
from turnout_workers.providers.errors import ProviderError

LOOKED_AT = 1000
"""Records of each index, the oldest first."""


@click.command()
@click.option("--check", is_flag=True, help="Ask each provider's free health endpoint.")
def providers(check: bool) -> None:
    """List providers, models, prices (USD per million tokens) and limits."""
    here = setting(with_keys=check)
    numbers = ("in", "out", "rpm", "tpm", "context")
    made = table("endpoint", "sent as", "in", "out", "price from", "rpm", "tpm", "context", "can", numbers=numbers)
    for endpoint in here.fleet.endpoints:
        price, limits = endpoint.price, endpoint.limits
        add(
            made,
            endpoint.id + (" (simulated)" if endpoint.simulated else ""),
            endpoint.served_model,
            f"{price.input:g}" if price else "?",
            f"{price.output:g}" if price else "?",
            price.source if price else "unknown",
            str(limits.requests_per_minute or ""),
            str(limits.tokens_per_minute or ""),
            f"{endpoint.context_tokens:,}" if endpoint.context_tokens else "?",
            ", ".join(sorted(endpoint.capabilities)),
        )
    Console().print(made)
    if check:
        sick = asyncio.run(_checked(here))
        sys.exit(1 if sick else 0)


async def _checked(here: Setting) -> int:
    """Ask every account; prints a line each, returns how many did not answer well."""
    http = Http()
    try:
        connectors = [build(account, http) for account in accounts(here.settings)]
        answers = await asyncio.gather(*(one.check_health() for one in connectors), return_exceptions=True)
    finally:
        await http.aclose()
    sick = 0
    for connector, answer in zip(connectors, answers, strict=True):
        if isinstance(answer, ProviderError):
            sick += 1
            click.echo(f"{connector.name}: {answer}")
        elif isinstance(answer, BaseException):
            raise answer
        else:
            click.echo(f"{connector.name}: answers")
    return sick


@click.command()
def doctor() -> None:
    """Check configuration, keys, Redis and versions, and say what to do. Exit code 1 if something must be done."""
    here = setting(with_keys=True)
    told = [(True, f"configuration {here.settings.version} from {here.settings.source}")]
    told.append(
        (True, f"{len(here.fleet.endpoints)} endpoints; Python {sys.version.split()[0]}, turnout {version('turnout')}")
    )
    unpriced = [endpoint.id for endpoint in here.fleet.endpoints if endpoint.price is None]
    if unpriced:
        told.append(
            (False, f"no price is known of {', '.join(unpriced)}: set input_usd_per_mtok and output_usd_per_mtok")
        )
    if here.settings.simulated:
        told.append((False, "some providers are simulated: their answers are made up"))
    try:
        told += redis_fitness.checks(here.client.info())
        told += _foreign(here)
    except redis.ResponseError as error:
        told.append((False, f"Redis doesn't let us look ({error}); ask again as a user who may"))
    except redis.RedisError as error:
        told.append((False, f"Redis can't be reached: {error}; set REDIS_URL, or redis_url in turnout.toml"))
    for well, text in told:
        click.echo(f"{'ok  ' if well else 'DO  '} {text}")
    sys.exit(0 if all(well for well, _ in told) else 1)


def _foreign(here: Setting) -> Iterator[tuple[bool, str]]:
    """Live jobs that are left untouched: another release wrote their records, or a key is missing to read them."""
    keys = here.ledger.keys
    indexes = (*keys.all_pending, keys.leases, keys.parked)
    *found, parked = here.ask(*(Read(("ZRANGE", index, 0, LOOKED_AT - 1), list) for index in indexes))
    ids = {job_id.decode() for ids in found for job_id in ids} | {spot.decode().split(" ", 2)[2] for spot in parked}
    records = here.ask(*(Read(("HMGET", keys.job(job_id), "v", "seal"), list) for job_id in ids))
    seals = Counter(seal.decode() for _, seal in records if seal)
    for ref, count in sorted(seals.items()):
        if ref not in here.ledger.keyring.refs:
            yield False, f"{count} jobs: {Unreadable('their requests', ref, here.ledger.keyring.refs)}, for the workers"
    versions = Counter(int(v or 0) for v, _ in records)
    for known, count in sorted(versions.items()):
        if known not in (0, CONTRACT_VERSION):  # 0: gone meanwhile
            what = f"{count} jobs have records of version {known}, and this Turnout knows version {CONTRACT_VERSION}"
            yield False, f"{what}: they are left untouched; let workers run that know it"
