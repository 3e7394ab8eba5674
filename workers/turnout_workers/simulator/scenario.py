"""What the simulated fleet consists of, and what goes wrong with it when: frozen values, a file, a default."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter

from turnout.request import Capability, Quality
from turnout_workers.routing.fleet import Limits, Price

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
_CHAT = frozenset({Capability.STREAMING, Capability.TOOLS, Capability.JSON_SCHEMA})
_EMBEDDING = frozenset({Capability.EMBEDDINGS})

WireFormat = Literal["openai", "anthropic", "gemini"]
FaultKind = Literal["down", "slow", "rate_limit", "hang", "garbage", "error", "truncate", "bill"]


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong. It begins when `after_s` and `after_requests` have both passed since the
    server started (or the fault was sent to the control endpoint), and ends by `for_s` or `for_requests`
    after that, whichever is first; with neither it stays."""

    __pydantic_config__ = _STRICT
    kind: FaultKind
    """`down` closes the connection without an answer; `slow` multiplies latency by `factor`; `rate_limit`
    answers 429; `hang` accepts and says nothing; `garbage` answers 200 with HTML; `error` answers `status`;
    `truncate` cuts the answer off half-way; `bill` answers `status`, and bills as if it had succeeded."""
    after_s: float = 0.0
    after_requests: int = 0
    for_s: float | None = None
    for_requests: int | None = None
    share: float = 1.0
    """Of the calls in that time, how many it hits; which ones is drawn from the scenario's seed."""
    factor: float = 10.0
    status: int = 500
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class SimulatedModel:
    __pydantic_config__ = _STRICT
    price: Price
    served: str = ""
    """The provider's own name of it; empty: the same as ours."""
    context_tokens: int = 131_072
    max_output_tokens: int = 8_192
    capabilities: frozenset[Capability] = _CHAT
    quality: Quality = Quality.GOOD
    aliases: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class SimulatedProvider:
    __pydantic_config__ = _STRICT
    models: Mapping[str, SimulatedModel]
    """By our name of the model."""
    kind: WireFormat = "openai"
    ttft_s: float = 0.0
    s_per_token: float = 0.0
    jitter: float = 0.0
    """Standard deviation of the log of the latency."""
    limits: Limits = Limits()
    """For each key by itself."""
    keys: tuple[str, ...] = ()
    """The accepted API keys; empty: any key, or none."""
    priority: int = 100
    weight: float = 1.0
    regions: frozenset[str] = frozenset()
    no_training: bool = False
    zero_retention: bool = False
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True, slots=True)
class Scenario:
    __pydantic_config__ = _STRICT
    providers: Mapping[str, SimulatedProvider] = field(default_factory=dict)
    seed: int = 1
    output_tokens: int = 80
    """Median length of an answer; single answers vary around it."""


_SCENARIO = TypeAdapter(Scenario)


def load(path: Path) -> Scenario:
    """Read a scenario file (TOML). Raises OSError, tomllib.TOMLDecodeError or pydantic.ValidationError."""
    return parse(tomllib.loads(path.read_text("utf-8")))


def parse(data: Mapping[str, Any]) -> Scenario:
    return _SCENARIO.validate_python(data)


def fault(data: Mapping[str, Any]) -> Fault:
    """A fault from JSON. Raises pydantic.ValidationError."""
    return TypeAdapter(Fault).validate_python(data)


def dump(scenario: Scenario) -> dict[str, Any]:
    """The scenario as JSON values, as `parse` takes them."""
    dumped: dict[str, Any] = _SCENARIO.dump_python(scenario, mode="json", exclude_none=True)
    return dumped


def default_scenario() -> Scenario:
    """Five providers that differ in price, speed, limits and wire format; the cheapest goes down for a while.

    Prices are in the range of what such models cost at real providers; speeds and limits are made up.
    """
    return Scenario(
        seed=1,
        providers={
            "sim-thrifty": SimulatedProvider(
                ttft_s=0.5,
                s_per_token=0.008,
                jitter=0.25,
                limits=Limits(requests_per_minute=1200, concurrency=16),
                priority=3,
                regions=frozenset({"us"}),
                faults=(Fault("down", after_requests=30, for_s=6.0),),
                models={
                    "llama-3.3-70b": SimulatedModel(
                        Price(0.10, 0.32), "meta-llama/Llama-3.3-70B-Instruct", 131_072
                    ),
                    "gpt-oss-20b": SimulatedModel(
                        Price(0.03, 0.14), "openai/gpt-oss-20b", quality=Quality.BASIC
                    ),
                },
            ),
            "sim-swift": SimulatedProvider(
                ttft_s=0.12,
                s_per_token=0.002,
                jitter=0.2,
                limits=Limits(requests_per_minute=300, tokens_per_minute=300_000, concurrency=8),
                priority=2,
                regions=frozenset({"us"}),
                no_training=True,
                models={
                    "llama-3.3-70b": SimulatedModel(Price(0.59, 0.79), "llama-3.3-70b-versatile"),
                    "gpt-oss-120b": SimulatedModel(Price(0.15, 0.60), "openai/gpt-oss-120b"),
                },
            ),
            "sim-steady": SimulatedProvider(
                ttft_s=0.4,
                s_per_token=0.007,
                jitter=0.15,
                limits=Limits(requests_per_minute=3000, tokens_per_minute=2_000_000),
                priority=1,
                regions=frozenset({"us", "eu"}),
                no_training=True,
                models={
                    "gpt-4.1-mini": SimulatedModel(
                        Price(0.40, 1.60, 0.10),
                        "gpt-4.1-mini-2025-04-14",
                        1_047_576,
                        capabilities=_CHAT | {Capability.VISION},
                        aliases=frozenset({"gpt-mini"}),
                    ),
                    "text-embedding-3-small": SimulatedModel(
                        Price(0.02, 0.0), context_tokens=8_191, capabilities=_EMBEDDING
                    ),
                },
            ),
            "sim-scholar": SimulatedProvider(
                kind="anthropic",
                ttft_s=0.8,
                s_per_token=0.012,
                jitter=0.2,
                limits=Limits(
                    requests_per_minute=600,
                    input_tokens_per_minute=400_000,
                    output_tokens_per_minute=80_000,
                ),
                priority=4,
                regions=frozenset({"us", "eu"}),
                no_training=True,
                zero_retention=True,
                models={
                    "claude-sonnet-4.5": SimulatedModel(
                        Price(3.0, 15.0, 0.30),
                        "claude-sonnet-4-5",
                        200_000,
                        capabilities=_CHAT | {Capability.VISION},
                        quality=Quality.BEST,
                        aliases=frozenset({"claude-sonnet"}),
                    ),
                    "claude-haiku-4.5": SimulatedModel(
                        Price(1.0, 5.0, 0.10),
                        "claude-haiku-4-5",
                        200_000,
                        aliases=frozenset({"claude-haiku"}),
                    ),
                },
            ),
            "sim-horizon": SimulatedProvider(
                kind="gemini",
                ttft_s=0.45,
                s_per_token=0.005,
                jitter=0.3,
                limits=Limits(requests_per_minute=1000, tokens_per_minute=1_000_000),
                priority=5,
                regions=frozenset({"eu"}),
                no_training=True,
                models={
                    "gemini-2.5-flash": SimulatedModel(
                        Price(0.30, 2.50, 0.03),
                        context_tokens=1_048_576,
                        capabilities=_CHAT | {Capability.VISION},
                        aliases=frozenset({"gemini-flash"}),
                    ),
                    "gemini-embedding-001": SimulatedModel(
                        Price(0.15, 0.0), context_tokens=2_048, capabilities=_EMBEDDING
                    ),
                },
            ),
        },
    )
