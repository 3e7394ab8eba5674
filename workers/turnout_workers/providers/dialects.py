"""What differs between providers that speak the same wire format, declared.

Sources: the vendors' documentation and official clients.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from turnout.request import OPENAI_FIELDS
from turnout_workers.routing.fleet import TEMPLATE_TOKENS
from turnout_workers.routing.images import Fixed, ImageRule

PARAMETERS = frozenset({"temperature", "top_p", "stop", "seed", "dimensions", "reasoning_effort"})
PARAMETERS |= {"tools", "tool_choice", "json_schema", "json_object"}

WEB_IMAGES = frozenset({"image/png", "image/jpeg", "image/webp", "image/gif"})
SHORT_TEMPLATE_TOKENS = 10
"""Upper estimate of a template of marks alone, as vendors have for their own models: OpenAI's takes 3, by its
cookbook."""
STANDARD_LIMITS = {"x-ratelimit-{}-requests": "requests_per_minute", "x-ratelimit-{}-tokens": "tokens_per_minute"}
"""By name of a response header, in which `{}` stands for `limit`, `remaining` or `reset`: the field of `Limits` that it
describes."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one vendor speaks a wire format."""

    kind: str = "openai"
    base_url: str = ""
    key_variables: tuple[str, ...] = ()
    auth_header: str = "authorization"
    auth_prefix: str = "Bearer "
    max_tokens: str = "max_tokens"
    """Name of the field that limits the answer's length."""
    seed: str = "seed"
    system_role: str = "system"
    call_id: re.Pattern[str] | None = None
    """Form of the ids of tool calls. None: any."""
    parameters: frozenset[str] = PARAMETERS
    no_reasoning: Mapping[str, Any] | None = None
    """Fields that turn reasoning off, if the effort `none` is unknown here."""
    image_types: frozenset[str] = frozenset()
    """Of images that it takes; empty: not known, so that any is sent."""
    image_rule: ImageRule | None = None
    """How images count at all its models. None: as each model's maker says."""
    template_tokens: int = TEMPLATE_TOKENS
    """See `Endpoint`."""
    original_images: bool = False
    """Knows the detail `original` of images, for which others are sent `high`."""
    text_only_roles: tuple[str, ...] = ()
    """Roles whose messages can't hold images."""
    wants_reasoning_back: bool = False
    """Demands that its reasoning before tool calls is sent back with the calls."""
    stream_usage: bool = True
    """Supports `stream_options.include_usage`."""
    health_path: str = "/models"
    """After the base URL. Costs nothing, and needs a good key."""
    limit_headers: Mapping[str, str] = field(default_factory=lambda: STANDARD_LIMITS)
    limits_count_cached: bool = True
    limits_count_max_output: bool = True
    """See `Endpoint`."""
    price_id: str | None = None
    """The provider's id in the price list. None: only the operator knows its prices."""
    tier_factors: Mapping[str, float] = field(default_factory=dict)
    """What service tiers cost, times the usual price, of models of which the price list doesn't say it."""
    names_are_deployments: bool = False
    """Models are called by the names of the customer's deployments, which may be those of other models."""

    def names_by_trust(self, served: str, ours: str) -> tuple[str, str]:
        """Both names of a model, the one that identifies it first."""
        return (ours, served) if self.names_are_deployments else (served, ours)


def _hosted(name: str, base_url: str, **special: Any) -> tuple[str, Dialect]:
    """A vendor whose key is in NAME_API_KEY and whose prices are listed by its name, by default."""
    usual = {"key_variables": (f"{name.upper()}_API_KEY",), "price_id": name}
    return name, Dialect(base_url=base_url, **(usual | special))


_LIKE_OPENAI: dict[str, Any] = {"max_tokens": "max_completion_tokens"}
_OPENAIS_OWN = _LIKE_OPENAI | {
    "limit_headers": STANDARD_LIMITS | {"x-ratelimit-{}-project-tokens": "tokens_per_minute"},
    "parameters": PARAMETERS | OPENAI_FIELDS,
    "image_types": WEB_IMAGES,
    "original_images": True,
    "text_only_roles": ("system", "developer", "assistant", "tool"),
}
DIALECTS: dict[str, Dialect] = dict(
    (
        _hosted(
            "openai",
            "https://api.openai.com/v1",
            **_OPENAIS_OWN,
            system_role="developer",
            template_tokens=SHORT_TEMPLATE_TOKENS,
        ),
        _hosted(
            "azure",
            "",  # each customer's own
            **_OPENAIS_OWN,
            key_variables=("AZURE_OPENAI_API_KEY",),
            auth_header="api-key",
            auth_prefix="",
            names_are_deployments=True,
        ),
        _hosted(
            "groq",
            "https://api.groq.com/openai/v1",
            image_rule=Fixed(2048),
            **_LIKE_OPENAI,
            limit_headers={"x-ratelimit-{}-requests": "requests_per_day", "x-ratelimit-{}-tokens": "tokens_per_minute"},
            limits_count_cached=False,
            tier_factors={"flex": 1.0},
        ),
        _hosted("together", "https://api.together.xyz/v1"),
        _hosted(
            "fireworks",
            "https://api.fireworks.ai/inference/v1",
            limit_headers={
                "x-ratelimit-{}-requests": "requests_per_minute",
                "x-ratelimit-{}-tokens-prompt": "input_tokens_per_minute",
                "x-ratelimit-{}-tokens-generated": "output_tokens_per_minute",
            },
        ),
        _hosted(
            "deepseek",
            "https://api.deepseek.com/v1",
            parameters=PARAMETERS - {"seed", "json_schema"},
            no_reasoning={"thinking": {"type": "disabled"}},
            wants_reasoning_back=True,
        ),
        _hosted(
            "mistral",
            "https://api.mistral.ai/v1",
            seed="random_seed",
            call_id=re.compile("[a-zA-Z0-9]{9}"),
            stream_usage=False,
            limit_headers={
                "x-ratelimit-{}-req-minute": "requests_per_minute",
                "x-ratelimit-{}-tokens-minute": "tokens_per_minute",
            },
        ),
        _hosted(
            "openrouter",
            "https://openrouter.ai/api/v1",
            health_path="/key",  # its list of models needs no key
        ),
        _hosted(
            "cerebras",
            "https://api.cerebras.ai/v1",
            **_LIKE_OPENAI,
            limit_headers={
                "x-ratelimit-{}-requests-day": "requests_per_day",
                "x-ratelimit-{}-requests-minute": "requests_per_minute",
                "x-ratelimit-{}-tokens-minute": "tokens_per_minute",
                "x-ratelimit-{}-tokens-day": "tokens_per_day",
            },
        ),
        _hosted("xai", "https://api.x.ai/v1", **_LIKE_OPENAI, price_id="x-ai"),
        ("vllm", Dialect(base_url="http://127.0.0.1:8000/v1")),
        ("ollama", Dialect(base_url="http://127.0.0.1:11434/v1")),
        # its list of models needs no key either
        ("llamacpp", Dialect(base_url="http://127.0.0.1:8080/v1", health_path="/../props")),
        _hosted(
            "anthropic",
            "https://api.anthropic.com",
            kind="anthropic",
            auth_header="x-api-key",
            auth_prefix="",
            parameters=PARAMETERS - {"seed", "dimensions"},
            image_types=WEB_IMAGES,
            template_tokens=SHORT_TEMPLATE_TOKENS,
            health_path="/v1/models",
            limit_headers={
                "anthropic-ratelimit-requests-{}": "requests_per_minute",
                "anthropic-ratelimit-tokens-{}": "tokens_per_minute",
                "anthropic-ratelimit-input-tokens-{}": "input_tokens_per_minute",
                "anthropic-ratelimit-output-tokens-{}": "output_tokens_per_minute",
            },
            limits_count_cached=False,
            limits_count_max_output=False,
        ),
        _hosted(
            "gemini",
            "https://generativelanguage.googleapis.com",
            kind="gemini",
            key_variables=("GEMINI_API_KEY", "GOOGLE_API_KEY"),
            auth_header="x-goog-api-key",
            auth_prefix="",
            image_types=WEB_IMAGES - {"image/gif"} | {"image/heic", "image/heif"},
            template_tokens=SHORT_TEMPLATE_TOKENS,
            limit_headers={},  # it sends none
            price_id="google",
            tier_factors={"flex": 0.5, "priority": 1.8},  # as its price page has it for each model that has both
        ),
    )
)
"""By name."""
GENERIC = Dialect()
"""OpenAI's plain format, for servers without a preset."""
