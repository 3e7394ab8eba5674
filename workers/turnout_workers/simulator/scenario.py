"""What the simulated fleet consists of, and when its faults happen: frozen values from a file.

A simulated provider is a provider's table of `turnout.toml`, plus its speed and its faults.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from turnout.request import Capability, Quality
from turnout.value import Name, Value
from turnout_workers.config import toml_lines
from turnout_workers.config.tables import (
    Count,
    LimitFields,
    ModelTable,
    ProviderName,
    ProviderTable,
    Usd,
    named_models,
    with_presets,
)
from turnout_workers.providers.catalogue import TOOLS

_BEHAVIOUR = {"ttft_s", "s_per_token", "jitter", "faults"}
"""Fields of a simulated provider that turnout.toml doesn't have."""

NotNegative = Annotated[float, Field(ge=0)]
FaultKind = Literal["down", "slow", "hang", "garbage", "error", "truncate", "bill"]


class Fault(Value):
    """One fault. It begins when `after_s` and `after_requests` have both passed since the server started (or the fault
    was sent to the control endpoint), and ends `for_s` or `for_requests` later, whichever is first; without either it
    stays."""

    kind: FaultKind
    """`down` closes the connection without an answer; `slow` multiplies latency by `factor`; `hang` accepts and says
    nothing; `garbage` answers 200 with HTML; `error` answers `status`; `truncate` cuts the answer off half-way; `bill`
    answers `status`, and bills as if it had succeeded."""
    after_s: NotNegative = 0.0
    after_requests: Annotated[int, Field(ge=0)] = 0
    for_s: NotNegative | None = None
    for_requests: Annotated[int, Field(ge=0)] | None = None
    share: Annotated[float, Field(ge=0, le=1)] = 1.0
    """The share of calls in that time that it hits, drawn with the scenario's seed."""
    factor: NotNegative = 10.0
    status: Annotated[int, Field(ge=300, le=599)] = 500
    retry_after_s: NotNegative | None = None


class SimulatedModel(ModelTable):
    input_usd_per_mtok: Usd
    output_usd_per_mtok: Usd
    context_tokens: int = 131_072
    max_output_tokens: int = 8_192
    capabilities: frozenset[Capability] = TOOLS
    quality: Quality = Quality.GOOD


class SimulatedProvider(ProviderTable):
    """Its limits apply to each key and model separately, as most vendors count. Without keys, it accepts any or
    none."""

    kind: Literal["openai", "anthropic", "gemini"] = "openai"
    models: Annotated[Mapping[Name, SimulatedModel], BeforeValidator(named_models)]
    simulated: bool = True
    ttft_s: NotNegative = 0.0
    s_per_token: NotNegative = 0.0
    jitter: NotNegative = 0.0
    """Standard deviation of the log of the latency."""
    faults: tuple[Fault, ...] = ()

    def limits(self, model: SimulatedModel) -> dict[str, int]:
        """By name: the model's own, else the provider's."""
        limits = ((name, getattr(model, name) or getattr(self, name)) for name in LimitFields.model_fields)
        return {name: limit for name, limit in limits if limit is not None}

    def table(self, base_url: str) -> dict[str, Any]:
        """Its table in the turnout.toml of workers that call it at this address."""
        expected = {"expected_ttft_s": self.ttft_s or None, "expected_s_per_token": self.s_per_token}
        models = {
            ours: {**expected, **model.model_dump(exclude_none=True), **self.limits(model)}
            for ours, model in self.models.items()
        }
        own = self.model_dump(exclude={*_BEHAVIOUR, *LimitFields.model_fields})
        return {**own, "base_url": base_url, "api_key": self.api_key or "simulated", "models": models}


class Scenario(Value):
    providers: Annotated[dict[ProviderName, SimulatedProvider], BeforeValidator(with_presets), Field(min_length=1)]
    seed: int = 1
    output_tokens: Count = 80
    """Median length of an answer."""

    def configuration(self, base_urls: Mapping[str, str]) -> dict[str, Any]:
        """The tables of a turnout.toml for this fleet at the addresses that `turnout simulate` printed."""
        providers = {name: self.providers[name].table(base_url) for name, base_url in base_urls.items()}
        # Checked more often than real providers, so that a short demonstration also shows a recovery.
        return {"router": {"health_check_interval": 2.0}, "providers": providers}


DEFAULT = Path(__file__).with_name("default.toml")


def load(path: Path = DEFAULT) -> Scenario:
    """Read a scenario file (TOML). Raises ConfigError."""
    return toml_lines.read(toml_lines.read_text(path), str(path), Scenario)
