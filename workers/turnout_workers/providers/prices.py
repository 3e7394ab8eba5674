"""What a call costs: as the provider reports, else by the operator's price, else by the price list, else unknown.

A cost is never guessed or taken for zero: an unknown price stays unknown, and jobs with a cost ceiling avoid it.
"""

from __future__ import annotations

import math
import re
import time
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from turnout.request import Usage
from turnout_workers.providers.dialects import Dialect
from turnout_workers.routing.fleet import OPERATOR, Endpoint, Price

if TYPE_CHECKING:
    from genai_prices.types import PriceCalculation

MAX_CALL_USD = 1e6
"""A provider that reports a higher cost is not believed."""
PERIOD_S = 900
"""Prices that depend on the time of day change on the quarter hour."""
USUAL_TIERS = frozenset({None, "auto", "default", "on_demand", "standard", "standard_only"})
"""The vendors' names for the service tier at list price, and for "any tier"."""
RESIDENCY_HOST = re.compile(r"https?://[a-z]{2}\.api\.openai\.com\b")
RESIDENCY_FACTOR = 1.1
"""OpenAI's surcharge for data residency, for models released since 2026-03-05; see its guide "Data residency"."""
BEFORE_RESIDENCY = re.compile(r"(ft:)?((chat)?gpt-[34]|gpt-5(\.[0-3])?(-|$)|o\d|text-embedding|codex-mini)")
"""Models released before that date, and fine-tuned ones that are made of them."""


def call_cost_microusd(
    endpoint: Endpoint,
    preset: Dialect,
    base_url: str,
    usage: Usage,
    reported_usd: float | None,
    tier: str | None,
    surcharge: float = 1.0,
) -> int | None:
    """The cost of one call. None: unknown, as for a call that isn't free and whose tokens are an estimate.

    reported_usd: the cost that the provider reports. tier: the service tier that served it, whose list price may differ
    from that of the tier requested; if it is unknown, the price of the latter counts. surcharge: a factor on list
    prices. An operator's own price includes all that.
    """
    if (
        isinstance(reported_usd, int | float)
        and not isinstance(reported_usd, bool)
        and 0 <= reported_usd < MAX_CALL_USD
    ):
        return math.ceil(reported_usd * 1e6 - 1e-9)
    price = endpoint.price
    if price is None:
        return None
    if price.source == OPERATOR:
        surcharge = 1.0
    elif tier:
        price = price_of(preset, base_url, endpoint.served_model, endpoint.model, tier) or price
    cost = cost_microusd(price, usage, surcharge)
    return None if cost and usage.source == "estimated" else cost


def cost_microusd(price: Price, usage: Usage, surcharge: float = 1.0) -> int:
    """The cost of a call, rounded up to micro-dollars. Dollars per million tokens equal micro-dollars per token.

    surcharge: a factor on the price of its tokens.
    """
    price = price.of(usage.input_tokens)
    read = price.input if price.cache_read is None else price.cache_read
    write = price.input if price.cache_write is None else price.cache_write
    hour = write if price.cache_write_hour is None else price.cache_write_hour
    fresh = usage.input_tokens - usage.cache_read_tokens - usage.cache_write_tokens
    exact = fresh * price.input + usage.cache_read_tokens * read + usage.output_tokens * price.output
    exact += usage.cache_write_tokens * write + usage.cache_write_hour_tokens * (hour - write)
    return math.ceil(round(exact * surcharge + usage.web_searches * price.web_search * 1000, 6))


def period(now: float) -> int:
    """The number of quarter hours since 1970. List prices are constant within one."""
    return int(now // PERIOD_S)


def price_of(preset: Dialect, base_url: str, served: str, ours: str, tier: str | None = None) -> Price | None:
    """The list price of a model, by the provider's name or ours. None if the list has neither, or not the provider, or
    if the price of this service tier is unknown."""
    if (listed_as := preset.price_id) is None:
        return None
    now, names = period(time.time()), preset.names_by_trust(served, ours)
    factor = RESIDENCY_FACTOR if RESIDENCY_HOST.match(base_url) and not BEFORE_RESIDENCY.match(names[0]) else 1.0
    ways = [(tier, factor)]
    if (usual := 1.0 if tier in USUAL_TIERS else preset.tier_factors.get(tier or "")) is not None:
        ways.append((None, factor * usual))
    return next(filter(None, (list_price(listed_as, name, now, *way) for way in ways for name in names)), None)


@lru_cache(maxsize=4096)
def list_context_tokens(provider: str, model: str) -> int | None:
    """The length of a model's context by the price list. None: unknown."""
    found = _calculated(provider, model)
    return None if found is None else found.model.context_window


@lru_cache(maxsize=4096)
def list_price(provider: str, model: str, quarter: int, tier: str | None = None, factor: float = 1.0) -> Price | None:
    """The price in the genai-prices package, as of a `period`. None if the package doesn't have the model, or no
    separate price for the tier.

    provider: its id in the list (`Dialect.price_id`). tier: the provider's name for a service tier or speed. factor: on
    the prices of tokens.
    """
    at = datetime.fromtimestamp(quarter * PERIOD_S, UTC)
    context = {"service_tier": tier, "speed": tier} if tier else None
    if (found := _calculated(provider, model, genai_request_timestamp=at, price_context=context)) is None:
        return None
    if tier and not any(
        tier in variant.when.values() and (variant.constraint is None or variant.constraint.active(at))
        for variant in found.model.price_variants or ()
    ):
        return None
    names = ("input_mtok", "output_mtok", "cache_read_mtok", "cache_write_mtok", "cache_write_1h_mtok")
    rates = [getattr(found.model_price, name, None) for name in names]
    search = _beyond(0, getattr(found.model_price, "web_searches_kcount", None))
    starts = {tier.start for rate in rates for tier in getattr(rate, "tiers", ())}
    source, longer = f"genai-prices {version('genai-prices')}", None
    for start in sorted({0, *starts}, reverse=True):
        fresh, answered, read, written, hour = (_beyond(start, rate, factor) for rate in rates)
        if fresh is None:
            return None
        price = Price(fresh, answered or 0.0, read, written, hour, search or 0.0, source, longer)
        longer = (start, price)
    return price


def _calculated(provider: str, model: str, **options: Any) -> PriceCalculation | None:
    """The price list's calculation for one token each way. None: it doesn't have the model."""
    from genai_prices import Usage as ListUsage
    from genai_prices import calc_price

    try:
        return calc_price(ListUsage(input_tokens=1, output_tokens=1), model, provider_id=provider, **options)
    except (LookupError, ValueError):
        return None


def _beyond(start: int, rate: Any, factor: float = 1.0) -> float | None:
    """A rate, or its tier for calls with more than `start` input tokens, times `factor`."""
    if hasattr(rate, "tiers"):
        rate = next((tier.price for tier in reversed(rate.tiers) if start >= tier.start), rate.base)
    return None if rate is None else float(rate) * factor
