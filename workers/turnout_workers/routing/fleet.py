"""The fleet as the router sees it: which endpoints there are, and what is known about them right now.

An *endpoint* is a provider × a model × an account (one API key). `Endpoint` is configuration and changes only
on reload; `Health`, `ProviderMetrics` and `Load` are observations that all workers share. A `Snapshot` binds
them at one instant, frozen, so that a decision is a pure function of it. Times are seconds on the store's
clock, never a worker's own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from turnout.request import Capability, Quality
from turnout_workers.routing.images import UNKNOWN, ImageRule

if TYPE_CHECKING:
    from turnout_workers.routing.estimate import Estimate

OPERATOR = "operator"
TEMPLATE_TOKENS = 100
"""Upper estimate of what the chat template of an open model adds to a request, such as gpt-oss's own system prompt."""


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens, which is also micro-dollars per token."""

    input: float
    output: float
    cache_read: float | None = None
    """None: cached input costs as much as any other."""
    cache_write: float | None = None
    """For input that the provider stores for later calls; None: as much as any other."""
    cache_write_hour: float | None = None
    """The same, stored for an hour; None: as much as `cache_write`."""
    web_search: float = 0.0
    """US dollars per thousand web searches that the provider makes for the answer."""
    source: str = OPERATOR
    """Where the price comes from: `operator`, or the name and version of the price list."""
    longer: tuple[int, Price] | None = None
    """Above this many input tokens, all tokens of the call have this other price."""

    @property
    def dearest_input(self) -> float:
        """The most that an input token may cost: the provider may store all of the input."""
        return max(self.input, self.cache_write or 0.0)

    @property
    def steps(self) -> tuple[Price, ...]:
        """This price, and those of longer calls."""
        return (self, *self.longer[1].steps) if self.longer else (self,)

    def of(self, input_tokens: int) -> Price:
        """The price of a call with this many input tokens."""
        return self.longer[1].of(input_tokens) if self.longer and input_tokens > self.longer[0] else self

    def upper_microusd(self, input_tokens: int, output_tokens: int) -> int:
        """The most that a call with these tokens can cost."""
        price = self.of(input_tokens)
        return math.ceil(input_tokens * price.dearest_input + output_tokens * price.output)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a provider allows; None: no such limit is known. Tokens are counted as the provider counts them."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Input and output together."""
    input_tokens_per_minute: int | None = None
    output_tokens_per_minute: int | None = None
    requests_per_day: int | None = None
    tokens_per_day: int | None = None
    concurrency: int | None = None
    """Calls in flight at once."""


UNLIMITED = Limits()
TOKEN_LIMITS = ("input_tokens_per_minute", "tokens_per_minute", "tokens_per_day")
"""Limits that a single call may exceed. Not those on output tokens: few answers are as long as they may be."""


def account_id(endpoint_id: str) -> str:
    """The provider and account of an endpoint, `provider` or `provider#account`.

    A `#` with a slash after it belongs to the model's name, as in those of deployments at Fireworks.
    """
    provider, _, rest = endpoint_id.partition("/")
    _, mark, account = rest.rpartition("#")
    return f"{provider}#{account}" if mark and "/" not in account else provider


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A provider × model × account to which a job can be sent."""

    provider: str
    model: str
    """Our name for the model."""
    served_model: str
    """The provider's name for it, sent on the wire."""
    account: str = ""
    """Distinguishes several keys of one provider; empty for the first."""
    priority: int = 100
    """Lower is preferred, by the priority and failover strategies."""
    weight: float = 1.0
    """Share of traffic, by round robin."""
    price: Price | None = None
    """None: unknown, which doesn't mean free."""
    limits: Limits = UNLIMITED
    shared_limits: Limits = UNLIMITED
    """Shared by all models of the account."""
    capabilities: frozenset[Capability] = frozenset()
    context_tokens: int | None = None
    max_output_tokens: int | None = None
    image_types: frozenset[str] = frozenset()
    """Media types of images that it accepts; empty: unknown, so all are sent."""
    image_rule: ImageRule = UNKNOWN
    """How it counts the tokens of an image."""
    template_tokens: int = TEMPLATE_TOKENS
    """The most that it adds to a chat, and bills as input."""
    limits_count_cached: bool = True
    """Whether its rate limits count input tokens from its cache."""
    limits_count_max_output: bool = True
    """Whether its rate limits count the longest allowed answer from the start, instead of the tokens as they come."""
    quality: Quality | None = None
    regions: frozenset[str] = frozenset()
    no_training: bool = False
    zero_retention: bool = False
    aliases: frozenset[str] = frozenset()
    """Other names by which a job may ask for this model."""
    expected_ttft_s: float | None = None
    """Prior for the time to first token, until observations replace it; None: not configured."""
    expected_s_per_token: float | None = None
    """Prior for the time of each output token."""
    simulated: bool = False
    id: str = field(init=False, repr=False, compare=False)
    """`provider/model`, with `#account` where a provider has several keys."""
    max_call_tokens: float = field(init=False, repr=False, compare=False)
    """The strictest of its token limits, which no call may exceed; infinite without one."""

    def __post_init__(self) -> None:
        suffix = f"#{self.account}" if self.account else ""
        object.__setattr__(self, "id", f"{self.provider}/{self.model}{suffix}")
        object.__setattr__(self, "max_call_tokens", min(map(self.token_limit, TOKEN_LIMITS)))

    @property
    def account_id(self) -> str:
        """What an account-wide failure (bad key, no credit) takes out."""
        return account_id(self.id)

    @property
    def is_timed(self) -> bool:
        """Whether the operator has configured how long its answers take, or a part of it."""
        return self.expected_ttft_s is not None or self.expected_s_per_token is not None

    def token_limit(self, name: str) -> float:
        """The stricter of its own limit and its account's; none where a cache may hold most of the prompt."""
        if name == "input_tokens_per_minute" and not self.limits_count_cached:
            return math.inf
        limits = (getattr(self.limits, name), getattr(self.shared_limits, name))
        return min((limit for limit in limits if limit is not None), default=math.inf)

    def serves(self, model: str) -> bool:
        return model == self.model or model == self.served_model or model in self.aliases


class Circuit(StrEnum):
    """Whether an endpoint may be called, and why not."""

    CLOSED = "closed"  # healthy
    OPEN = "open"  # ejected by us, until a time
    HALF_OPEN = "half_open"  # that time has come: exactly one probe for the whole fleet
    RAMPING = "ramping"  # recovered a moment ago: traffic grows back
    DISABLED = "disabled"  # bad key, no credit, no such model: until an operator or a health check
    ISOLATED = "isolated"  # taken out by an operator


class Health(NamedTuple):
    """The circuit of one endpoint. Transitions are decided in `health.py`."""

    open_until: float = 0.0
    """End of the current or last ejection; 0: not ejected since it was last well."""
    ejections: int = 0
    """Ejections in a row, for doubling; reset after a healthy minute."""
    recovered_at: float = 0.0
    """When the last ejection ended by a successful probe; 0: never. The ramp counts from here."""
    proven: int = 0
    """Calls answered since then."""
    cooldown_until: float = 0.0
    """End of the cooldown that the provider asked for (429, quota). It says nothing about its health."""
    disabled: str | None = None
    """Why it is disabled, or None."""
    disabled_at: float = 0.0
    isolated: str | None = None
    """Why an operator has taken it out, or None."""
    ejection_reason: str = ""
    """Of the last ejection, for people."""
    cooldown_reason: str = ""
    """Of the longest of the last cooldowns."""
    consecutive_failures: int = 0
    """Across the whole fleet; any success sets it to 0."""
    probing: bool = False
    """A probe is in flight."""

    @property
    def why(self) -> str:
        """What keeps it out, for people: first of all, an operator."""
        temporary = self.ejection_reason if self.open_until >= self.cooldown_until else self.cooldown_reason
        return next(why for why in (self.isolated, self.disabled, temporary) if why is not None)


class ProviderMetrics(NamedTuple):
    """What calls to an endpoint have shown lately. EWMAs; their time constants are in `latency.py` and `health.py`."""

    ttft_s: float | None = None
    """Time to first token, partly estimated (see `latency.first_token`); None: the endpoint's prior holds."""
    s_per_token: float | None = None
    sigma: float = 0.5
    """Standard deviation of the log of (observed / predicted) latency."""
    latency_at: float = 0.0
    """When latency was last observed."""
    latency_samples: int = 0
    error_rate: float = 0.0
    error_weight: float = 0.0
    """Effective number of outcomes behind `error_rate`."""
    cached_share: float = 0.0
    """Share of the input tokens that the provider had in its cache."""
    calls: int = 0
    failures: int = 0
    spent_microusd: int = 0


class Load(NamedTuple):
    """How busy an endpoint is, over the whole fleet."""

    in_flight: int = 0
    oldest_started_at: float = 0.0
    free: float = 1.0
    """Share of the scarcest limit that is left in the current window, 0 to 1."""
    ready_at: float = 0.0
    """When the scarcest limit will have room for another call like the last one that asked; 0: now."""
    fits: int = 0
    """Calls of at most this many tokens find room earlier."""
    full: str = ""
    """The limit without room until `ready_at`, a field of `Limits`."""


class Observed(NamedTuple):
    """What is known about one endpoint. By default it is healthy and idle."""

    health: Health = Health()
    metrics: ProviderMetrics = ProviderMetrics()
    load: Load = Load()


class EndpointView(NamedTuple):
    """One endpoint with everything that is known about it."""

    endpoint: Endpoint
    health: Health = Health()
    metrics: ProviderMetrics = ProviderMetrics()
    load: Load = Load()


class Fleet:
    """The configured endpoints, indexed by name. One object serves until the configuration changes."""

    def __init__(self, endpoints: Iterable[Endpoint]) -> None:
        self.endpoints = tuple(endpoints)
        self.ids = tuple(endpoint.id for endpoint in self.endpoints)
        if len(set(self.ids)) < len(self.ids):
            twice = sorted({id for id in self.ids if self.ids.count(id) > 1})
            raise ValueError(f"endpoint {twice[0]} is there twice: give each key of a provider its own account")

    def snapshot(self, at: float, observed: Mapping[str, Observed]) -> Snapshot:
        """The fleet at `at` on the store's clock; `observed`: by endpoint id."""
        views = tuple(EndpointView(endpoint, *observed.get(endpoint.id, ())) for endpoint in self.endpoints)
        return Snapshot(at, views, dict(zip(self.ids, views, strict=True)), self)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The fleet at one instant."""

    at: float
    """On the store's clock."""
    views: tuple[EndpointView, ...]
    by_id: Mapping[str, EndpointView]
    fleet: Fleet
    """Its endpoints are those of `views`, in the same order."""
    estimates: list[Estimate] = field(default_factory=list, repr=False, compare=False)
    """See `estimate.estimates`, which fills it at the first decision."""
