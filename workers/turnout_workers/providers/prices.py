"""What a call costs: the provider's own word, else the operator's price, else the price list, else unknown.

Never a guess, and never nothing: an unknown price stays unknown, and a job with a cost ceiling avoids it.
"""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from importlib.metadata import version

from turnout.request import Usage
from turnout_workers.routing.fleet import Price

_TOKENS = 1_000_000
PERIOD_S = 900
"""Prices by the time of day begin and end on a quarter of an hour."""


def cost_microusd(price: Price, usage: Usage) -> int:
    """Of one call, rounded up to a whole micro-dollar. Dollars per million tokens are micro-dollars per token."""
    read = price.input if price.cache_read is None else price.cache_read
    write = price.input if price.cache_write is None else price.cache_write
    fresh = usage.input_tokens - usage.cache_read_tokens - usage.cache_write_tokens
    exact = fresh * price.input + usage.cache_read_tokens * read + usage.cache_write_tokens * write
    exact += usage.output_tokens * price.output
    return math.ceil(round(exact, 6))


def period(now: float) -> int:
    """The quarter of an hour, since 1970, in which list prices stay as they are."""
    return int(now // PERIOD_S)


def list_price(provider: str, model: str, now: float | None = None) -> Price | None:
    """From the price list in the genai-prices package, as of `now` (s since 1970); None if it doesn't know the model.

    provider: its id in the list (`Dialect.price_id`). Prices that depend on the length of the prompt are taken
    for a short one, and those of a service tier for the standard one: a call in another tier wants the operator's own.
    """
    return _listed(provider, model, period(time.time() if now is None else now))


@lru_cache(maxsize=4096)
def _listed(provider: str, model: str, quarter: int) -> Price | None:
    from genai_prices import Usage as ListUsage
    from genai_prices import calc_price

    at = datetime.fromtimestamp(quarter * PERIOD_S, UTC)

    def per_million(usage: ListUsage) -> float | None:
        try:
            found = calc_price(usage, model, provider_id=provider, genai_request_timestamp=at)
        except (LookupError, ValueError):
            return None
        return round(float(found.total_price * Decimal(_TOKENS / 1000)), 6)

    # A thousand tokens each: a whole million would fall into the dearer tier of long prompts.
    fresh = per_million(ListUsage(input_tokens=1000, output_tokens=0))
    answered = per_million(ListUsage(input_tokens=0, output_tokens=1000))
    if fresh is None or answered is None:
        return None
    read = per_million(ListUsage(input_tokens=1000, cache_read_tokens=1000, output_tokens=0))
    written = per_million(ListUsage(input_tokens=1000, cache_write_tokens=1000, output_tokens=0))
    return Price(fresh, answered, read, written, _source())


def _source() -> str:
    return f"genai-prices {version('genai-prices')}"
