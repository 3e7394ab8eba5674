"""When a provider asks us to come back, and what it says about its limits, in every vendor's spelling."""

from __future__ import annotations

import email.utils
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from turnout_workers.providers.body import at, list_at
from turnout_workers.providers.errors import MAX_ERROR
from turnout_workers.state.store import ObservedLimit

_UNIT_S = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|ns|d|h|m|s)")
_DURATIONS = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|us|µs|ns|d|h|m|s))++")  # possessive, or a long text takes gigabytes
_WAIT_IN_WORDS = re.compile(
    rf"(?:try again in|retry after) (?:({_DURATIONS.pattern})\b"
    r"|(\d+(?:\.\d+)?)(?: ?(sec(?:ond)?|min(?:ute)?|hour|day)s?\b|(?![ .]?\w)))",
    re.IGNORECASE,
)
"""A bare number is seconds; one with an unknown unit is ignored."""
_QUOTAS = {"InputTokens": "input_tokens_per_minute", "Requests": "requests_per_minute"}
"""By a part of the names of Gemini's quotas, such as `GenerateRequestsPerMinutePerProjectPerModel-FreeTier`."""
MAX_WAIT_S = 30 * 86400.0
"""A longer wait is a mistake, theirs or ours."""
MAX_TEXT_LENGTH = 100
"""A longer text isn't a time."""
MAX_LIMIT = 1e12
"""A higher limit is ignored."""


def seconds(text: str | None, now: float) -> float | None:
    """Seconds from now, from a number, a Go duration (`6m0s`, `12ms`), an epoch in s or ms, RFC 3339, an HTTP date.

    None if it can't be read.
    """
    found = _seconds(text.strip(), now) if text and len(text) <= MAX_TEXT_LENGTH else None
    return None if found is None else min(max(0.0, found), MAX_WAIT_S)


def _seconds(text: str, now: float) -> float | None:
    if (number := _number(text)) is not None:
        if number < 0:
            return None
        if number > 1e11:
            return number / 1000 - now
        return number - now if number > 1e9 else number
    if _DURATIONS.fullmatch(text):
        return sum(float(amount) * _UNIT_S[unit] for amount, unit in _DURATION.findall(text))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        try:
            moment = email.utils.parsedate_to_datetime(text)
        except (ValueError, OverflowError):
            return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - now


def _sent_at(headers: Mapping[str, str], now: float) -> float:
    """The sender's clock. Moments that it names refer to it, and ours may be wrong by any amount."""
    date = headers.get("date")
    sent_at = _seconds(date, 0.0) if date else None
    return now if sent_at is None else sent_at


def retry_after_s(
    headers: Mapping[str, str], body: Any, now: float, limits: Iterable[ObservedLimit] = ()
) -> float | None:
    """How long the provider asks us to wait: from `retry-after-ms`, `retry-after`, Gemini's RetryInfo, its message
    ("try again in 7m12s"), OpenRouter's reset, or the resets of exhausted limits.

    The message comes before resets, because at many providers a reset is when a limit is full again; it has room for
    another call long before.
    """
    if (ms := _number(headers.get("retry-after-ms"))) is not None and ms >= 0:
        return min(ms / 1000, MAX_WAIT_S)
    now = _sent_at(headers, now)
    if (wait_s := seconds(headers.get("retry-after"), now)) is not None:
        return wait_s
    for info in _details(body, "RetryInfo"):
        delay = info.get("retryDelay")
        if (wait_s := seconds(delay if isinstance(delay, str) else None, now)) is not None:
            return wait_s
    if (wait_s := _in_words_s(str(at(body, "error", "message")), now)) is not None:
        return wait_s
    resets = [limit.reset_s for limit in limits if limit.remaining == 0]
    # OpenRouter reports only the limit that was reached, and for free models only in the body.
    if isinstance(inner := at(body, "error", "metadata", "headers"), dict):
        headers = {**headers, **{str(name).lower(): str(value) for name, value in inner.items()}}
    if _number(headers.get("x-ratelimit-remaining")) == 0:
        resets.append(seconds(headers.get("x-ratelimit-reset"), now))
    return max((reset for reset in resets if reset is not None), default=None)


def _in_words_s(message: str, now: float) -> float | None:
    """The wait in a message such as "try again in 7m12s", "in 5 minutes" or "retry after 20"."""
    if (found := _WAIT_IN_WORDS.search(message[:MAX_ERROR])) is None:
        return None
    duration, amount, unit = found.groups()
    return seconds((duration or f"{amount}{(unit or 's')[0]}").lower(), now)


def observed_limits(
    headers: Mapping[str, str], now: float, limit_headers: Mapping[str, str]
) -> tuple[ObservedLimit, ...]:
    """What a provider's headers say about its limits; where two concern one limit, the one with less remaining.
    limit_headers: see `Dialect.limit_headers`."""
    if not any("ratelimit" in name for name in headers):
        return ()
    found, now = dict[str, ObservedLimit](), _sent_at(headers, now)
    for name, kind in limit_headers.items():
        limit, remaining = (_number(headers.get(name.format(word))) for word in ("limit", "remaining"))
        if remaining is None or not 0 <= remaining <= MAX_LIMIT:  # Azure says -1 for "unknown"
            continue
        ceiling = int(limit) if limit is not None and 1 <= limit <= MAX_LIMIT else None
        if kind not in found or remaining < (found[kind].remaining or 0):
            reset_s = seconds(headers.get(name.format("reset")), now)
            found[kind] = ObservedLimit(kind, ceiling, int(remaining), reset_s)
    return tuple(found.values())


def exceeded_limits(body: Any) -> tuple[ObservedLimit, ...]:
    """The per-minute limits that Gemini says were exceeded. It reports them nowhere else."""
    found = []
    for failure in _details(body, "QuotaFailure"):
        for violation in list_at(failure, "violations"):
            quota, value = str(at(violation, "quotaId")), _number(str(at(violation, "quotaValue")))
            kind = next((kind for word, kind in _QUOTAS.items() if word in quota), None)
            if kind and "PerMinute" in quota and value is not None and 1 <= value <= MAX_LIMIT:
                found.append(ObservedLimit(kind, int(value)))
    return tuple(found)


def _details(body: Any, type: str) -> Iterator[dict[str, Any]]:
    """The details of one type in a Google error."""
    for detail in list_at(body, "error", "details"):
        if isinstance(detail, dict) and str(detail.get("@type")).endswith(f".{type}"):
            yield detail


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None
