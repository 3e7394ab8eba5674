"""Models that Turnout knows: what they can do, and what each provider calls them.

The catalogue is a convenience: what `turnout.toml` says about a model wins, and a model that isn't listed here works as
well, with the capabilities that the operator states. Figures are those that the vendors publish.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from turnout.request import Capability, Quality

CHAT = frozenset({Capability.STREAMING})
TOOLS = CHAT | {Capability.TOOLS, Capability.JSON_SCHEMA}
VISION = TOOLS | {Capability.VISION}
THINKING = VISION | {Capability.REASONING}
TEXT_THINKING = TOOLS | {Capability.REASONING}
TOOLLESS = THINKING - {Capability.TOOLS}
"""Beside reasoning, OpenAI's latest models take tools at /responses alone."""
EMBEDDING = frozenset({Capability.EMBEDDINGS})


@dataclass(frozen=True, slots=True)
class Model:
    """One model, at any provider."""

    name: str
    """Our name for it."""
    context_tokens: int | None
    max_output_tokens: int | None
    capabilities: frozenset[Capability]
    quality: Quality | None
    names: dict[str, str]
    """The provider's name for it, by dialect. A provider that isn't here isn't assumed to serve it."""
    aliases: frozenset[str] = frozenset()


def _own(
    maker: str,
    name: str,
    context_tokens: int,
    max_output_tokens: int | None,
    capabilities: frozenset[Capability],
    quality: Quality,
    *aliases: str,
) -> Model:
    """A model that its maker serves under our name. OpenRouter prefixes the maker and writes versions with a dot:
    `anthropic/claude-opus-5.5`."""
    dotted = re.sub(r"-(\d)-(\d)$", r"-\1.\2", name)
    names = {maker: name, "openrouter": f"{MAKERS_AT_OPENROUTER.get(maker, maker)}/{dotted}"}
    return Model(name, context_tokens, max_output_tokens, capabilities, quality, names, frozenset(aliases))


MAKERS_AT_OPENROUTER = {"gemini": "google", "xai": "x-ai"}
BASIC, GOOD, BEST = Quality
MODELS: tuple[Model, ...] = (
    _own("openai", "gpt-6.1-sol", 1_050_000, 128_000, TOOLLESS, BEST),
    _own("openai", "gpt-6.1-terra", 1_050_000, 128_000, TOOLLESS, GOOD),
    _own("openai", "gpt-6-luna", 1_050_000, 128_000, TOOLLESS, BASIC),
    _own("openai", "gpt-5.4", 1_050_000, 128_000, THINKING, BEST),
    _own("openai", "gpt-5.4-mini", 400_000, 128_000, THINKING, GOOD),
    _own("openai", "gpt-4.1", 1_047_576, 32_768, VISION, BEST),
    _own("openai", "gpt-4.1-mini", 1_047_576, 32_768, VISION, GOOD),
    _own("openai", "gpt-4o", 128_000, 16_384, VISION, BEST),
    _own("openai", "gpt-4o-mini", 128_000, 16_384, VISION, GOOD),
    _own("anthropic", "claude-opus-5-5", 1_000_000, 128_000, THINKING, BEST, "claude-opus"),
    _own("anthropic", "claude-sonnet-5-5", 1_000_000, 128_000, THINKING, BEST, "claude-sonnet"),
    _own("anthropic", "claude-haiku-5-5", 1_000_000, 128_000, THINKING, GOOD, "claude-haiku"),
    _own("anthropic", "claude-sonnet-4-5", 200_000, 64_000, THINKING, BEST, "claude-sonnet"),
    _own("anthropic", "claude-haiku-4-5", 200_000, 64_000, THINKING, GOOD, "claude-haiku"),
    _own("gemini", "gemini-4-argon", 1_048_576, 65_536, THINKING, BEST, "gemini-pro"),
    _own("gemini", "gemini-3.8-flash", 1_048_576, 65_536, THINKING, GOOD, "gemini-flash"),
    _own("gemini", "gemini-3.5-flash-lite", 1_048_576, 65_536, THINKING, BASIC),
    _own("gemini", "gemini-2.5-flash-lite", 1_048_576, 65_536, THINKING, BASIC),
    _own("deepseek", "deepseek-v4-pro", 1_000_000, 384_000, TEXT_THINKING, BEST),
    Model(
        "deepseek-flash", 1_000_000, 384_000, THINKING, GOOD,
        {"deepseek": "deepseek-flash", "openrouter": "deepseek/deepseek-v4.1-flash"},
    ),
    _own("xai", "grok-4.7", 500_000, None, THINKING, BEST),
    _own("xai", "grok-4.3", 1_000_000, None, THINKING, GOOD),
    Model(
        "llama-3.3-70b", 131_072, 32_768, TOOLS, GOOD,
        {
            "together": "meta-llama/Llama-3.3-70B-Instruct-Turbo",
            "fireworks": "accounts/fireworks/models/llama-v3p3-70b-instruct",
            "openrouter": "meta-llama/llama-3.3-70b-instruct",
            "ollama": "llama3.3:70b",
            "vllm": "meta-llama/Llama-3.3-70B-Instruct",
        },
    ),
    Model(
        "llama-3.1-8b", 131_072, 131_072, TOOLS, BASIC,
        {
            "together": "meta-llama/Meta-Llama-3.1-8B-Instruct-Turbo",
            "openrouter": "meta-llama/llama-3.1-8b-instruct",
            "ollama": "llama3.1:8b",
            "vllm": "meta-llama/Llama-3.1-8B-Instruct",
        },
    ),
    Model(
        "gpt-oss-120b", 131_072, 65_536, TEXT_THINKING, GOOD,
        {
            "groq": "openai/gpt-oss-120b",
            "together": "openai/gpt-oss-120b",
            "fireworks": "accounts/fireworks/models/gpt-oss-120b",
            "cerebras": "gpt-oss-120b",
            "openrouter": "openai/gpt-oss-120b",
            "ollama": "gpt-oss:120b",
            "vllm": "openai/gpt-oss-120b",
        },
    ),
    Model(
        "gpt-oss-20b", 131_072, 65_536, TEXT_THINKING, BASIC,
        {
            "groq": "openai/gpt-oss-20b",
            "together": "openai/gpt-oss-20b",
            "fireworks": "accounts/fireworks/models/gpt-oss-20b",
            "openrouter": "openai/gpt-oss-20b",
            "ollama": "gpt-oss:20b",
            "vllm": "openai/gpt-oss-20b",
        },
    ),
    Model(
        "qwen-3.8-27b", 65_536, None, THINKING, GOOD,
        {"groq": "qwen/qwen3.8-27b", "cerebras": "qwen-3.8-27b", "openrouter": "qwen/qwen3.8-27b"},
    ),
    Model(
        "mistral-large", 262_144, None, VISION, BEST,
        {"mistral": "mistral-large-2512", "openrouter": "mistralai/mistral-large-2512"},
        frozenset({"mistral-large-latest"}),
    ),
    Model(
        "mistral-small", 262_144, None, THINKING, BASIC,
        {"mistral": "mistral-small-latest", "openrouter": "mistralai/mistral-small-2603"},
    ),
    Model("text-embedding-3-small", 8_191, None, EMBEDDING, None, {"openai": "text-embedding-3-small"}),
    Model("text-embedding-3-large", 8_191, None, EMBEDDING, None, {"openai": "text-embedding-3-large"}),
    Model("gemini-embedding-001", 2_048, None, EMBEDDING, None, {"gemini": "gemini-embedding-001"}),
)  # fmt: skip


FAMILIES: tuple[tuple[re.Pattern[str], frozenset[Capability]], ...] = tuple(
    (re.compile(rf"(^|[/:.-])({names})", re.IGNORECASE), capabilities)
    for names, capabilities in (
        ("embed|text-embedding", EMBEDDING),
        ("gpt-oss", TEXT_THINKING),
        ("gpt-|o[1-9]|claude|gemini|grok", THINKING),
        ("deepseek|qwen|kimi|glm|minimax|magistral", TEXT_THINKING),
        ("(meta-)?llama|mistral|mixtral|ministral|codestral|command|nova", TOOLS),
        ("gemma|llava|pixtral|internvl|minicpm|moondream", TOOLS),
    )
)
"""What models that aren't in the catalogue can do, by family. After a wrong guess the call is refused and fails over;
without a guess no job with tools would ever be sent."""


_SEEING = re.compile(
    r"([/:.\d-]|^)(vl|vision|llava|pixtral|internvl|minicpm-?v|moondream|multimodal)(?![a-z])|"
    r"gemma-?[34]|llama-?4|qwen-?3[.][5-9]|glm-?\d[\d.]*v|mistral-small-?3[.]|ministral-?3",
    re.IGNORECASE,
)
"""Names of open models, or parts of them, that take images, where the rest of the family doesn't."""


def likely_capabilities(name: str) -> frozenset[Capability]:
    """What a model can probably do, judging by its name. Empty if the name says nothing."""
    able = next((able for names, able in FAMILIES if names.search(name)), frozenset[Capability]())
    return able | {Capability.VISION} if Capability.TOOLS in able and _SEEING.search(name) else able


_BY_NAME = {name: model for model in reversed(MODELS) for name in (model.name, *model.aliases, *model.names.values())}
"""If several models share an alias, it is the first one's."""


def find(name: str) -> Model | None:
    """A model by our name, an alias, or any provider's name for it."""
    return _BY_NAME.get(name)


def served_by(dialect: str | None) -> Iterator[Model]:
    """The models that a vendor is known to serve. None for an unknown vendor."""
    return (model for model in MODELS if dialect in model.names)
