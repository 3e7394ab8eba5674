"""`turnout doctor`: is everything fit for production, and what must be done?"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from importlib.metadata import version

import click
from redis.exceptions import RedisError, ResponseError

from turnout.errors import TurnoutError
from turnout.redis_trouble import explain
from turnout_workers.commands.providers import health_checks
from turnout_workers.commands.screen import print_json
from turnout_workers.deployment import Deployment, deployment
from turnout_workers.state import fitness

SIGNS = {True: "ok  ", False: "DO  ", None: "?   "}


@click.command()
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object per line; `ok` is null where it can't be known."
)
def doctor(as_json: bool) -> None:
    """Check configuration, keys and Redis. Says what to do; the exit code is 1 if there is anything."""
    checks = [*_checks()]
    for ok, text in checks:
        if as_json:
            print_json({"ok": ok, "text": text})
        else:
            click.echo(f"{SIGNS[ok]} {text}")
    sys.exit(1 if any(ok is False for ok, _ in checks) else 0)


def _checks() -> Iterator[tuple[bool | None, str]]:
    try:
        here = deployment(with_keys=True)
        endpoints = here.fleet.endpoints
    except TurnoutError as error:
        yield from ((False, str(error)), (None, "nothing else can be checked before that"))
        return
    yield True, f"configuration {here.settings.version} from {here.settings.source.where}"
    yield True, f"{len(endpoints)} endpoints; Python {sys.version.split()[0]}, turnout {version('turnout')}"
    for name, problem in asyncio.run(health_checks(here.settings)).items():
        yield not problem, f"{name} {problem or 'answers'}"
    if unpriced := ", ".join(endpoint.id for endpoint in endpoints if endpoint.price is None):
        yield False, f"the price of {unpriced} is unknown: set input_usd_per_mtok and output_usd_per_mtok"
    charged = [one for one in endpoints if one.price and one.price.output]
    if endless := ", ".join(one.id for one in charged if not (one.max_output_tokens or one.context_tokens)):
        yield False, f"the longest answer of {endless} is unknown, so ceilings may be exceeded: set max_output_tokens"
    if here.settings.simulated:
        yield False, "some providers are simulated: their answers are made up"
    try:
        yield from fitness.checks(here.client.info())
        yield _restart(here)
    except RedisError as error:
        yield False, explain(error)


def _restart(here: Deployment) -> tuple[bool | None, str]:
    """Whether jobs survive a restart: Redis 7, and Valkey before 9.1.2, read their AOF as the user `default`."""
    try:
        rights = here.client.acl_dryrun("default", "HSET", here.ledger.keys.job("any"), "state", "queued")
    except ResponseError:
        return None, "this login can't see the rights of the ACL user `default`: it needs acl|dryrun"
    if rights in (b"OK", "OK"):
        return True, "the ACL user `default` has the rights that Redis needs to read its append-only file"
    return False, (
        "the ACL user `default` lacks the rights that Redis needs to read its append-only file: a restart may lose "
        "every job; give it ~* &* +@all, and leave it off"
    )
