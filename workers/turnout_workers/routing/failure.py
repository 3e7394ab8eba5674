"""What went wrong with a call, as the router sees it: named by consequence, not by vendor or status."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class FailureKind(StrEnum):
    """Every way in which a call can fail. `failover.py` has the table of what each leads to."""

    RATE_LIMITED = "rate_limited"  # 429: wait as asked; never counts against health
    QUOTA_EXHAUSTED = "quota_exhausted"  # a per-day quota: out for an hour or more
    OVERLOADED = "overloaded"  # 503, 529: the provider says so
    UNAVAILABLE = "unavailable"  # refused, DNS, TLS, connect timeout: never reached, never billed
    TIMED_OUT = "timed_out"  # 408, 504, first-byte, idle or total deadline: perhaps billed
    INTERRUPTED = "interrupted"  # reset or truncated after the request was sent: perhaps billed
    SERVER_ERROR = "server_error"  # 500, 502 and other 5xx: perhaps billed
    MALFORMED = "malformed"  # a 200 that isn't an answer: assumed billed; or a refusal that isn't from the API: free
    EMPTY = "empty"  # an answer without a word: billed
    OFF_SCHEMA = "off_schema"  # an answer that doesn't fit the requested schema: billed
    UNAUTHORIZED = "unauthorized"  # the key is not accepted
    BILLING = "billing"  # no credit, spend limit
    UNAFFORDABLE = "unaffordable"  # there is credit, but for shorter answers than this job allows
    FORBIDDEN = "forbidden"  # the key may not do this
    MODEL_NOT_FOUND = "model_not_found"
    CONTEXT_LENGTH = "context_length"  # the prompt is too long for this model
    CONTENT_FILTERED = "content_filtered"
    UNSUPPORTED = "unsupported"  # a parameter that this endpoint doesn't support
    CONFLICT = "conflict"  # 409, 425
    INVALID_REQUEST = "invalid_request"  # the caller's fault, according to the provider
    LOCAL = "local"  # our fault (connection pool, reload), not theirs
    CANCELLED = "cancelled"  # we stopped the call: shutdown, lost lease, cancelled job


class Billed(StrEnum):
    """Whether a failed call may have cost money. MAYBE turns its reservation into unsure money."""

    NO = "no"
    MAYBE = "maybe"
    YES = "yes"


class Scope(StrEnum):
    """How much a failure takes out: one model at that provider (the endpoint), or the whole account."""

    ENDPOINT = "endpoint"
    ACCOUNT = "account"


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed call. `message` is the provider's own text, without keys and prompts."""

    kind: FailureKind
    message: str
    billed: Billed = Billed.NO
    scope: Scope = Scope.ENDPOINT
    retry_after_s: float | None = None
    """How long the provider asked us to wait, if it did."""
    request_id: str | None = None
    parameter: str | None = None
    """Our name for the unsupported parameter, if the provider says which it is."""
    repeatable: bool = True
    """False: the provider says that the same request to the same endpoint would fail again."""
