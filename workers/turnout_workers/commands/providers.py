"""`turnout providers`: what is configured, and whether it answers. `turnout doctor`: is all fit for production?"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import click
import redis
from rich.console import Console
from rich.table import Table

from turnout.errors import Unreadable
from turnout.ledger import Call, run
from turnout.request import CONTRACT_VERSION
from turnout_workers import redis_fitness
from turnout_workers.commands.screen import add, table
from turnout_workers.commands.setting import Setting, setting
from turnout_workers.endpoints import accounts
from turnout_workers.providers import CloudProviderBase, Http, build
from turnout_workers.providers.errors import ProviderError
from turnout_workers.routing.failure import FailureKind
from turnout_workers.routing.fleet import OPERATOR, EndpointView, Limits
from turnout_workers.state.fleet_view import trouble
from turnout_workers.state.redis import state_call

LOOKED_AT = 1000
"""Records of each index, the oldest first."""
UNITS = {
    "requests_per_minute": "rpm",
    "tokens_per_minute": "tpm",
    "input_tokens_per_minute": "input tpm",
    "output_tokens_per_minute": "output tpm",
    "requests_per_day": "requests a day",
    "tokens_per_day": "tokens a day",
    "concurrency": "at once",
}
ADVICE = {
    FailureKind.UNAUTHORIZED: "put a good key where this one came from",
    FailureKind.BILLING: "add credit, or raise the spend limit, at the provider",
    FailureKind.FORBIDDEN: "this key may not list models, which calls don't need; or give it the right",
    FailureKind.MODEL_NOT_FOUND: "nothing can be asked there for free; or base_url or version is wrong",
    FailureKind.UNAVAILABLE: "look at base_url, the network, and whether it needs a proxy",
    FailureKind.TIMED_OUT: "look at base_url and the network",
    FailureKind.MALFORMED: "look at base_url: something else answers there",
    FailureKind.RATE_LIMITED: "nothing: the key is good",
}
"""What to do about a health check that failed."""


@click.command()
@click.option("--check", is_flag=True, help="Ask each provider's free health endpoint, with each key.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def providers(check: bool, as_json: bool) -> None:
    """List providers, models, prices (USD per million tokens), limits and health."""
    here = setting(with_keys=check, discover=True)
    told = _look(here)
    answers = asyncio.run(_answers(here)) if check else {}
    if as_json:
        click.echo(json.dumps({"endpoints": told, **({"checks": answers} if check else {})}))
    else:
        Console().print(_drawn(told))
        for name, wrong in answers.items():
            click.echo(f"{name}: {wrong or 'answers'}")
    sys.exit(1 if any(answers.values()) else 0)


def _look(here: Setting) -> list[dict[str, Any]]:
    """All endpoints, as plain values. `health` is None where Redis can't be asked."""
    views: dict[str, EndpointView] = {}
    at = 0.0
    try:
        snapshot = here.fleet.snapshot(*run(here.client, [state_call(here.ledger.keys)])[0])
        at, views = snapshot.at, {view.endpoint.id: view for view in snapshot.views}
    except redis.RedisError:
        pass
    found = []
    for endpoint in here.fleet.endpoints:
        price = endpoint.price
        wrong = trouble(views[endpoint.id].health, at) if endpoint.id in views else None
        found.append(
            {
                "endpoint": endpoint.id,
                "sent_as": endpoint.served_model,
                "input_usd_per_mtok": price.input if price else None,
                "output_usd_per_mtok": price.output if price else None,
                "price_from": price.source if price else None,
                "limits": _told(endpoint.limits),
                "shared_limits": _told(endpoint.shared_limits),
                "context_tokens": endpoint.context_tokens,
                "capabilities": sorted(endpoint.capabilities),
                "health": None if endpoint.id not in views else wrong[1] if wrong else "well",
                "simulated": endpoint.simulated,
            }
        )
    return found


def _told(limits: Limits) -> dict[str, int]:
    return {name: value for name in UNITS if (value := getattr(limits, name)) is not None}


def _drawn(told: list[dict[str, Any]]) -> Table:
    columns = ("endpoint", "in", "out", "price", "limits", "context", "can", "health")
    made = table(*columns, numbers=("in", "out", "context"), whole=("limits",))
    for one in told:
        renamed = "" if one["endpoint"].partition("/")[2].split("#")[0] == one["sent_as"] else f"\n= {one['sent_as']}"
        prices = (one["input_usd_per_mtok"], one["output_usd_per_mtok"])
        add(
            made,
            one["endpoint"] + (" (simulated)" if one["simulated"] else "") + renamed,
            *("?" if price is None else f"{price:g}" for price in prices),
            {None: "?", OPERATOR: "yours"}.get(one["price_from"], "list"),
            "\n".join(f"{value:,} {UNITS[name]}" for name, value in one["limits"].items()),
            f"{one['context_tokens']:,}" if one["context_tokens"] else "?",
            "\n".join(one["capabilities"]),
            one["health"] or "no Redis",
            style="" if one["health"] in ("well", None) else "yellow",
        )
    return made


async def _answers(here: Setting) -> dict[str, str]:
    """Ask every account: what is wrong with it and what to do, or nothing."""

    async def ask(connector: CloudProviderBase) -> str:
        try:
            await connector.check_health()
        except ProviderError as error:
            advice = ADVICE.get(error.failure.kind)
            return f"{error}; {advice}" if advice else str(error)
        return ""

    http = Http()
    try:
        asked = {account.account_id: ask(build(account, http)) for account in accounts(here.settings)}
        return dict(zip(asked, await asyncio.gather(*asked.values()), strict=True))
    finally:
        await http.aclose()


@click.command()
def doctor() -> None:
    """Check configuration, keys, Redis and versions, and say what to do. Exit code 1 if something must be done."""
    here = setting(with_keys=True, discover=True)
    told = [(True, f"configuration {here.settings.version} from {here.settings.source}")]
    told.append(
        (True, f"{len(here.fleet.endpoints)} endpoints; Python {sys.version.split()[0]}, turnout {version('turnout')}")
    )
    told += [(not wrong, f"{name} {wrong or 'answers'}") for name, wrong in asyncio.run(_answers(here)).items()]
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
    *found, parked = here.ask(*(Call(("ZRANGE", index, 0, LOOKED_AT - 1), list) for index in indexes))
    ids = {job_id.decode() for ids in found for job_id in ids} | {spot.decode().split(" ", 2)[2] for spot in parked}
    records = here.ask(*(Call(("HMGET", keys.job(job_id), "v", "seal"), list) for job_id in ids))
    seals = Counter(seal.decode() for _, seal in records if seal)
    for ref, count in sorted(seals.items()):
        if ref not in here.ledger.keyring.refs:
            yield False, f"{count} jobs: {Unreadable('their requests', ref, here.ledger.keyring.refs)}, for the workers"
    versions = Counter(int(v or 0) for v, _ in records)
    for known, count in sorted(versions.items()):
        if known not in (0, CONTRACT_VERSION):  # 0: gone meanwhile
            what = f"{count} jobs have records of version {known}, and this Turnout knows version {CONTRACT_VERSION}"
            yield False, f"{what}: they are left untouched; let workers run that know it"
