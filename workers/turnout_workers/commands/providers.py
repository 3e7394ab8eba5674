"""`turnout providers`: what is configured, and whether it answers. `turnout doctor`: is all fit for production?"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

import click
import redis
from rich.console import Console
from rich.table import Table

from turnout_workers.commands.setting import Setting, setting
from turnout_workers.endpoints import accounts
from turnout_workers.providers import Http, build
from turnout_workers.providers.errors import ProviderError

OLDEST_REDIS = (7, 0)
"""`#!lua` flags need it."""


@click.command()
@click.option("--check", is_flag=True, help="Ask each provider's free health endpoint.")
def providers(check: bool) -> None:
    """List providers, models, prices (USD per million tokens) and limits."""
    here = setting(with_keys=check)
    table = Table("endpoint", "sent as", "in", "out", "price from", "rpm", "tpm", "context", "can")
    for endpoint in here.fleet.endpoints:
        price, limits = endpoint.price, endpoint.limits
        table.add_row(
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
    Console().print(table)
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
        told += redis_checks(here.client.info(), here.client.config_get("maxmemory-policy"))
    except redis.ResponseError as error:
        told.append((False, f"Redis doesn't let us look at its settings ({error}); check them yourself"))
    except redis.RedisError as error:
        told.append((False, f"Redis can't be reached: {error}; set REDIS_URL, or redis_url in turnout.toml"))
    for well, text in told:
        click.echo(f"{'ok  ' if well else 'DO  '} {text}")
    sys.exit(0 if all(well for well, _ in told) else 1)


def redis_checks(info: dict[str, Any], policy: Mapping[Any, Any]) -> Iterator[tuple[bool, str]]:
    """What production needs of Redis: each with whether it is so, and what to do if not."""
    told = str(info.get("valkey_version") or info["redis_version"])
    current = tuple(int(part) for part in told.split(".")[:2]) >= OLDEST_REDIS
    yield current, f"Redis or Valkey {told}" + ("" if current else "; 7.0 or newer is needed")
    durable = bool(int(info.get("aof_enabled", 0)))
    yield (
        durable,
        "the append-only file is " + ("on" if durable else "off: accepted jobs die with Redis; set appendonly yes"),
    )
    evicts = policy.get("maxmemory-policy", "noeviction")
    yield (
        evicts == "noeviction",
        f"maxmemory-policy is {evicts}"
        + ("" if evicts == "noeviction" else ": jobs would vanish; set maxmemory-policy noeviction"),
    )
    limit, used = int(info.get("maxmemory", 0)), int(info["used_memory"])
    roomy = not limit or used < 0.8 * limit
    yield (
        roomy,
        f"{used / 1e6:.0f} MB used of {f'{limit / 1e6:.0f} MB' if limit else 'no limit'}"
        + ("" if roomy else ": no new jobs are accepted above 80 %; raise maxmemory or purge"),
    )
