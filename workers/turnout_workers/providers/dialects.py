"""What differs between providers that speak the same wire format: declarations, no code.

Sources: the vendors' documentation and official clients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

PLAIN = frozenset({"temperature", "top_p", "stop", "seed", "dimensions"})
PLAIN |= {"tools", "tool_choice", "json_schema", "json_object"}
OPENAI_PARAMETERS = PLAIN | {"reasoning_effort"}

STANDARD_LIMITS = {
    "x-ratelimit-{}-requests": "requests_per_minute",
    "x-ratelimit-{}-tokens": "tokens_per_minute",
}
"""Names of response headers, in which `{}` stands for `limit`, `remaining` or `reset`, and the field of `Limits` that
each of them is about."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one vendor speaks a wire format."""

    kind: str = "openai"
    base_url: str = ""
    key_variables: tuple[str, ...] = ()
    auth_header: str = "authorization"
    auth_prefix: str = "Bearer "
    max_tokens: str = "max_tokens"
    """The field that limits the answer's length."""
    seed: str = "seed"
    system_role: str = "system"
    call_id_length: int | None = None
    """Of the ids of tool calls, which are letters and digits; None: they are free."""
    parameters: frozenset[str] = PLAIN
    stream_usage: bool = True
    """Takes `stream_options.include_usage`."""
    health_path: str = "/models"
    """Costs nothing, and needs a good key."""
    limit_headers: Mapping[str, str] = field(default_factory=lambda: STANDARD_LIMITS)
    version: str | None = None
    price_id: str | None = None
    """The provider's id in the price list; None: its prices are the operator's to give."""


DIALECTS: dict[str, Dialect] = {
    "openai": Dialect(
        base_url="https://api.openai.com/v1",
        key_variables=("OPENAI_API_KEY",),
        max_tokens="max_completion_tokens",
        system_role="developer",
        parameters=OPENAI_PARAMETERS,
        price_id="openai",
    ),
    "azure": Dialect(
        key_variables=("AZURE_OPENAI_API_KEY",),
        auth_header="api-key",
        auth_prefix="",
        max_tokens="max_completion_tokens",
        parameters=OPENAI_PARAMETERS,
        price_id="azure",
    ),
    "groq": Dialect(
        base_url="https://api.groq.com/openai/v1",
        key_variables=("GROQ_API_KEY",),
        max_tokens="max_completion_tokens",
        parameters=OPENAI_PARAMETERS,
        limit_headers={
            "x-ratelimit-{}-requests": "requests_per_day",
            "x-ratelimit-{}-tokens": "tokens_per_minute",
        },
        price_id="groq",
    ),
    "together": Dialect(
        base_url="https://api.together.xyz/v1", key_variables=("TOGETHER_API_KEY",), price_id="together"
    ),
    "fireworks": Dialect(
        base_url="https://api.fireworks.ai/inference/v1",
        key_variables=("FIREWORKS_API_KEY",),
        parameters=OPENAI_PARAMETERS,
        limit_headers={
            "x-ratelimit-{}-requests": "requests_per_minute",
            "x-ratelimit-{}-tokens-prompt": "input_tokens_per_minute",
            "x-ratelimit-{}-tokens-generated": "output_tokens_per_minute",
        },
        price_id="fireworks",
    ),
    "deepseek": Dialect(
        base_url="https://api.deepseek.com/v1",
        key_variables=("DEEPSEEK_API_KEY",),
        parameters=PLAIN - {"seed", "json_schema"},
        price_id="deepseek",
    ),
    "mistral": Dialect(
        base_url="https://api.mistral.ai/v1",
        key_variables=("MISTRAL_API_KEY",),
        seed="random_seed",
        call_id_length=9,
        stream_usage=False,
        limit_headers={
            "x-ratelimit-{}-req-minute": "requests_per_minute",
            "x-ratelimit-{}-tokens-minute": "tokens_per_minute",
        },
        price_id="mistral",
    ),
    "openrouter": Dialect(
        base_url="https://openrouter.ai/api/v1",
        key_variables=("OPENROUTER_API_KEY",),
        parameters=OPENAI_PARAMETERS,
        health_path="/key",  # its list of models is for everybody
        price_id="openrouter",
    ),
    "cerebras": Dialect(
        base_url="https://api.cerebras.ai/v1",
        key_variables=("CEREBRAS_API_KEY",),
        max_tokens="max_completion_tokens",
        parameters=OPENAI_PARAMETERS,
        limit_headers={
            "x-ratelimit-{}-requests-day": "requests_per_day",
            "x-ratelimit-{}-requests-minute": "requests_per_minute",
            "x-ratelimit-{}-tokens-minute": "tokens_per_minute",
            "x-ratelimit-{}-tokens-day": "tokens_per_day",
        },
        price_id="cerebras",
    ),
    "xai": Dialect(
        base_url="https://api.x.ai/v1",
        key_variables=("XAI_API_KEY",),
        max_tokens="max_completion_tokens",
        parameters=OPENAI_PARAMETERS,
        price_id="x-ai",
    ),
    "vllm": Dialect(base_url="http://127.0.0.1:8000/v1", parameters=OPENAI_PARAMETERS),
    "ollama": Dialect(base_url="http://127.0.0.1:11434/v1"),
    "llamacpp": Dialect(base_url="http://127.0.0.1:8080/v1"),
    "anthropic": Dialect(
        kind="anthropic",
        base_url="https://api.anthropic.com",
        key_variables=("ANTHROPIC_API_KEY",),
        auth_header="x-api-key",
        auth_prefix="",
        parameters=OPENAI_PARAMETERS - {"seed", "json_object", "dimensions"},
        health_path="/v1/models",
        limit_headers={
            "anthropic-ratelimit-requests-{}": "requests_per_minute",
            "anthropic-ratelimit-tokens-{}": "tokens_per_minute",
            "anthropic-ratelimit-input-tokens-{}": "input_tokens_per_minute",
            "anthropic-ratelimit-output-tokens-{}": "output_tokens_per_minute",
        },
        version="2023-06-01",
        price_id="anthropic",
    ),
    "gemini": Dialect(
        kind="gemini",
        base_url="https://generativelanguage.googleapis.com",
        key_variables=("GEMINI_API_KEY", "GOOGLE_API_KEY"),
        auth_header="x-goog-api-key",
        auth_prefix="",
        parameters=OPENAI_PARAMETERS,
        health_path="/models",
        limit_headers={},  # it sends none
        version="v1beta",
        price_id="google",
    ),
}
"""By name."""
GENERIC = Dialect()
"""OpenAI's format and nothing else, as of a server that is not OpenAI's own."""


def dialect(name: str | None, kind: str) -> Dialect:
    """The preset of that name; None: the plain form of the wire format."""
    return DIALECTS.get(name or ("" if kind == "openai" else kind), GENERIC)
