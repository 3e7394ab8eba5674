"""What the simulated fleet consists of, and what goes wrong with it when: frozen values, from a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter

from turnout.request import Capability, Quality
from turnout_workers import toml_lines
from turnout_workers.routing.fleet import Limits, Price

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
_CHAT = frozenset({Capability.STREAMING, Capability.TOOLS, Capability.JSON_SCHEMA})

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
    limits: Limits = field(default_factory=Limits)
    """For each key and model by itself, as most vendors count."""
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
_FAULT = TypeAdapter(Fault)
_FIELDS = [f.name for kind in (Scenario, SimulatedProvider, SimulatedModel, Fault, Limits, Price) for f in fields(kind)]
DEFAULT = Path(__file__).with_name("default.toml")


def load(path: Path = DEFAULT) -> Scenario:
    """Read a scenario file (TOML). Raises OSError or ConfigError."""
    return toml_lines.read(path.read_text("utf-8"), str(path), _SCENARIO.validate_python, _FIELDS)


def fault(data: Mapping[str, Any]) -> Fault:
    """A fault from JSON. Raises pydantic.ValidationError."""
    return _FAULT.validate_python(data)
