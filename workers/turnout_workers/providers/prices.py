"""What a call costs: the provider's own word, else the operator's price, else the price list, else unknown.

Never a guess, and never nothing: an unknown price stays unknown, and a job with a cost ceiling avoids it.
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
"""The most that one call can cost; a provider that reports more is not believed."""
PERIOD_S = 900
"""Prices by the time of day begin and end on a quarter of an hour."""
USUAL_TIERS = frozenset({None, "auto", "default", "on_demand", "standard", "standard_only"})
"""The vendors' names of the service tier that costs what the list says, and of the wish for whichever there is."""
RESIDENCY_HOST = re.compile(r"https?://[a-z]{2}\.api\.openai\.com\b")
RESIDENCY_FACTOR = 1.1
"""What OpenAI takes where data stays in a region, of models released since 2026-03-05: its guide "Data residency"."""
BEFORE_RESIDENCY = re.compile(r"gpt-[34]|gpt-5(\.[0-3])?(-|$)|o\d|text-embedding")
"""Models that were released before."""


def call_cost_microusd(
    endpoint: Endpoint,
    preset: Dialect,
    base_url: str,
    usage: Usage,
    reported_usd: float | None,
    tier: str | None,
    surcharge: float = 1.0,
) -> int | None:
    """The cost of one call; None: unknown, as it is where the tokens of a call that isn't free are an estimate.

    reported_usd: what the provider itself says that it cost. tier: the service tier in which it was served, which may
    have another list price than the one that was asked for. surcharge: by what list prices are multiplied. An
    operator's own price has all of that in it.
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
    elif tier and (price := price_of(preset, base_url, endpoint.served_model, endpoint.model, tier)) is None:
        return None
    cost = cost_microusd(price, usage, surcharge)
    return None if cost and usage.source == "estimated" else cost


def cost_microusd(price: Price, usage: Usage, surcharge: float = 1.0) -> int:
    """The cost of a call, rounded up to micro-dollars. Dollars per million tokens are micro-dollars per token.

    surcharge: by what the price of its tokens is multiplied.
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
    """The quarter of an hour, since 1970, in which list prices stay as they are."""
    return int(now // PERIOD_S)


def price_of(preset: Dialect, base_url: str, served: str, ours: str, tier: str | None = None) -> Price | None:
    """The list price of a model by its names there and here; None: the list knows neither, or not the provider, or the
    price of this service tier isn't known."""
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
    """The length of a model's context, as far as the price list knows it."""
    found = _calculated(provider, model)
    return None if found is None else found.model.context_window


@lru_cache(maxsize=4096)
def list_price(provider: str, model: str, quarter: int, tier: str | None = None, factor: float = 1.0) -> Price | None:
    """From the price list in the genai-prices package, as of a `period`; None if it doesn't know the model, or has no
    price of its own for the tier.

    provider: its id in the list (`Dialect.price_id`). tier: the provider's name of a service tier, or of a speed.
    factor: by what the prices of tokens are multiplied.
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
    """What the price list makes of a call of one token each way; None: it doesn't know the model."""
    from genai_prices import Usage as ListUsage
    from genai_prices import calc_price

    try:
        return calc_price(ListUsage(input_tokens=1, output_tokens=1), model, provider_id=provider, **options)
    except (LookupError, ValueError):
        return None


def _beyond(start: int, rate: Any, factor: float = 1.0) -> float | None:
    """A rate, or what of its tiers holds for calls with more than `start` input tokens, times `factor`."""
    if hasattr(rate, "tiers"):
        rate = next((tier.price for tier in reversed(rate.tiers) if start >= tier.start), rate.base)
    return None if rate is None else float(rate) * factor
