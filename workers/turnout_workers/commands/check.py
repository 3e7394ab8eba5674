"""Asking each configured account whether it answers, and saying what to do where it doesn't."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from turnout_workers.config import Settings, accounts
from turnout_workers.providers import CloudProviderBase, Http, build
from turnout_workers.providers.errors import ProviderError
from turnout_workers.routing.failure import FailureKind

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


async def answers_of(settings: Settings) -> dict[str, str]:
    """Ask every account's free health endpoint: what is wrong with it and what to do, or nothing."""

    async def ask(connector: CloudProviderBase) -> str:
        try:
            await connector.check_health()
        except ProviderError as error:
            advice = ADVICE.get(error.failure.kind)
            return f"{error}; {advice}" if advice else str(error)
        return ""

    async with aclosing(Http()) as http:
        asked = {one.endpoints[0].account_id: ask(build(one, http)) for one in accounts(settings)}
        return dict(zip(asked, await asyncio.gather(*asked.values()), strict=True))
