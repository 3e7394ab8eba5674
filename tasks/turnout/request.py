"""The contract between producers and workers: requests, their constraints, and responses.

Money is integer micro-dollars (`_microusd`) wherever it is added up, and dollars (`_usd`) only where a person writes or
reads it. Times are seconds (`_s`); absolute times carry a time zone.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from functools import partial
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AwareDatetime, BaseModel, BeforeValidator, Field, JsonValue, field_validator, model_validator

from turnout.messages import ImagePart, Message, ResponseFormat, Tool, ToolCall
from turnout.value import Name, Several, Tolerant, Value, compact_json, without_unknown_fields

CONTRACT_VERSION = 1
"""Major version of messages and records. A worker leaves a job of an unknown major untouched."""

MICROUSD_PER_USD = 1_000_000

MAX_NUMBER = 1e9
"""Largest amount in dollars, number of tokens or time (s) in a job, so that our arithmetic, and Redis's, is exact."""

OPENAI_FIELDS = frozenset(
    {
        "frequency_penalty", "presence_penalty", "logit_bias", "parallel_tool_calls", "verbosity", "user",
        "service_tier", "store", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "prediction",
    }
)  # fmt: skip
"""Parameters of OpenAI's API beyond the fields of a request."""
ANY_PROVIDER = "*"
"""In `extras`, instead of a provider's name."""

M = TypeVar("M", bound=BaseModel)


class RoutingStrategy(StrEnum):
    """How the router orders the endpoints that satisfy a job's constraints."""

    BALANCED = "balanced"
    """The cheapest that will be in time: price, lateness and urgency in one utility. The default."""
    COST_OPTIMIZED = "cost"
    LATENCY_OPTIMIZED = "latency"
    PRIORITY = "priority"
    """The operator's priority (1 before 2), unless the preferred one would be late."""
    ROUND_ROBIN = "round_robin"
    """In turn, weighted by the endpoint's weight."""
    FAILOVER = "failover"
    """Strictly in order: the next one only if those before it are out."""


class Lane(StrEnum):
    """Queues by urgency, served in this order; each has a reserved share, so that none starves."""

    INTERACTIVE = "interactive"
    STANDARD = "standard"
    BATCH = "batch"


class Capability(StrEnum):
    """What a model must be able to do; checked against the model catalogue."""

    TOOLS = "tools"
    JSON_SCHEMA = "json_schema"
    VISION = "vision"
    REASONING = "reasoning"
    STREAMING = "streaming"
    EMBEDDINGS = "embeddings"


class Quality(StrEnum):
    """Coarse quality tiers of models, lowest first."""

    BASIC = "basic"
    GOOD = "good"
    BEST = "best"

    @property
    def rank(self) -> int:
        return list(Quality).index(self)


# --- the request -----------------------------------------------------------------------------------------


def _as_tuple(value: Any) -> Any:
    """A single string counts as a list of one."""
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


def _as_frozenset(value: Any) -> Any:
    """The same for sets. Pydantic's strict mode accepts a JSON list for a set only if no validator ran before it, so
    the conversion is done here."""
    items = _as_tuple(value)
    try:
        return frozenset(items) if isinstance(items, tuple) else items
    except TypeError:  # an item is unhashable, for example a list
        raise ValueError("each must be a string") from None


Names = Annotated[Several[Name], BeforeValidator(_as_tuple)]


class RoutingConstraints(Value):
    """What an endpoint must satisfy, and how to choose among those that do. Every field is optional."""

    only: Names = ()
    """Providers to use and no others."""
    ignore: Names = ()
    """Providers never to use."""
    order: Names = ()
    """Providers to try first, in this order."""
    max_cost_usd: float | None = Field(default=None, ge=0, le=MAX_NUMBER)
    """Ceiling on this job's cost over all of its attempts. An endpoint of unknown price is then excluded."""
    max_input_usd_per_mtok: float | None = Field(default=None, ge=0, le=MAX_NUMBER)
    max_output_usd_per_mtok: float | None = Field(default=None, ge=0, le=MAX_NUMBER)
    max_latency_s: float | None = Field(default=None, gt=0, le=MAX_NUMBER)
    """Expected duration of the call."""
    deadline: AwareDatetime | None = None
    """The job expires if it has not been settled by then."""
    deadline_s: float | None = Field(default=None, gt=0, le=MAX_NUMBER)
    """The same, relative to when the job is accepted."""
    regions: Names = ()
    """Regions in which the data may be processed; an endpoint of unknown region is excluded."""
    no_training: bool = False
    zero_retention: bool = False
    capabilities: Annotated[frozenset[Capability], Field(fail_fast=True), BeforeValidator(_as_frozenset)] = frozenset()
    """In addition to those that the request implies (tools, images, a JSON schema)."""
    min_context_tokens: int | None = Field(default=None, gt=0, le=MAX_NUMBER)
    min_quality: Quality | None = None
    strategy: RoutingStrategy | None = None
    """None: the router's default."""
    lane: Lane = Lane.STANDARD
    tenant: Name | None = None
    """Its ceilings apply to the job, and lanes are shared fairly among tenants."""
    allow_fallback: bool = True
    """False: only the first choice is called; if it fails, the job fails."""

    @property
    def max_cost_microusd(self) -> int | None:
        return None if self.max_cost_usd is None else round(self.max_cost_usd * MICROUSD_PER_USD)

    def deadline_at(self, accepted_at: float) -> float | None:
        """The earlier of both deadlines as a Unix time, for a job accepted at `accepted_at`."""
        absolute = None if self.deadline is None else self.deadline.timestamp()
        relative = None if self.deadline_s is None else accepted_at + self.deadline_s
        return min((at for at in (absolute, relative) if at is not None), default=None)


class InferenceRequest(Value):
    """One inference to be done. Exactly one of `prompt`, `messages` and `input` (embeddings) is set.

    Its repr shows no prompt, and a response's repr no answer, because tracebacks with values end up anywhere.
    """

    prompt: str | None = Field(default=None, repr=False)
    messages: Several[Message] | None = Field(default=None, repr=False)
    input: str | Several[str] | None = Field(default=None, repr=False)
    """Texts to embed."""
    model: Name | Several[Name] | None = None
    """A model, or several acceptable ones, by our name or any alias. None, or "auto" among them: any model."""
    max_output_tokens: int | None = Field(default=None, gt=0, le=MAX_NUMBER)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    stop: Annotated[Several[str], BeforeValidator(_as_tuple)] = Field(default=(), repr=False)
    seed: int | None = None
    tools: Several[Tool] = Field(default=(), repr=False)
    tool_choice: Literal["auto", "none", "required"] | Name | None = None
    """A mode, or the name of the one function to call."""
    response_format: ResponseFormat = Field(default=ResponseFormat(), repr=False)
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    dimensions: int | None = Field(default=None, gt=0, le=MAX_NUMBER)
    """Size of an embedding."""
    timeout_s: float | None = Field(default=None, gt=0, le=MAX_NUMBER)
    """Longest duration of one call; None: derived from the endpoint's usual duration."""
    on_unsupported: Literal["drop", "fail"] = "drop"
    """A parameter that the chosen endpoint doesn't support is dropped with a warning, or fails the call there."""
    extras: dict[Name, dict[str, JsonValue]] = Field(default_factory=dict, repr=False)
    """Further body fields by provider, so that a failover never leaks one vendor's options to another. Those under `*`
    are parameters like the fields above: for every provider, and dropped with a warning if one doesn't support them."""
    metadata: dict[str, str] = Field(default_factory=dict)
    """The caller's own labels; never sent to a provider."""
    constraints: RoutingConstraints = RoutingConstraints()

    @field_validator("metadata")
    @classmethod
    def _labels(cls, metadata: dict[str, str]) -> dict[str, str]:
        try:
            "".join(metadata).encode()
        except UnicodeEncodeError:
            raise ValueError("a name contains a lone surrogate, which is not valid Unicode") from None
        return metadata

    @field_validator("extras")
    @classmethod
    def _known_for_any_provider(cls, extras: dict[str, dict[str, JsonValue]]) -> dict[str, dict[str, JsonValue]]:
        if unknown := extras.get(ANY_PROVIDER, {}).keys() - OPENAI_FIELDS:
            known = ", ".join(sorted(OPENAI_FIELDS))
            raise ValueError(f"{min(unknown)} is for no provider in particular; {ANY_PROVIDER} takes {known}")
        return extras

    @model_validator(mode="after")
    def _one_content(self) -> Self:
        contents = [name for name in ("prompt", "messages", "input") if getattr(self, name) is not None]
        if len(contents) != 1:
            raise ValueError(f"give exactly one of prompt, messages, input; got {', '.join(contents) or 'none'}")
        if not getattr(self, contents[0]) and contents[0] != "prompt":
            raise ValueError(f"{contents[0]} is empty")
        return self

    @property
    def chat(self) -> tuple[Message, ...]:
        """The conversation, also of a prompt; empty for embeddings."""
        if self.prompt is not None:
            return (Message(role="user", content=self.prompt),)
        return self.messages or ()

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts to embed; empty for a chat."""
        return (self.input,) if isinstance(self.input, str) else self.input or ()

    @property
    def is_embedding(self) -> bool:
        return self.input is not None

    @property
    def models(self) -> tuple[str, ...]:
        """The acceptable models; empty: any."""
        models = (self.model,) if isinstance(self.model, str) else self.model or ()
        return () if "auto" in models else models

    @property
    def required_capabilities(self) -> frozenset[Capability]:
        """Those that the request implies, and those that its constraints add."""
        required = self.constraints.capabilities
        if self.tools:
            required |= {Capability.TOOLS}
        if self.response_format.type == "json_schema":
            required |= {Capability.JSON_SCHEMA}
        if self.is_embedding:
            required |= {Capability.EMBEDDINGS}
        if any(
            isinstance(p, ImagePart) for m in self.messages or () if isinstance(m.content, tuple) for p in m.content
        ):
            required |= {Capability.VISION}
        return required

    def canonical_json(self) -> str:
        """The request as compact JSON without defaults: the same request gives the same text.

        Our own fields have a fixed order. A caller's schemas and options keep theirs, and another order makes another
        request: a model writes its answer in the order of the schema's fields, for example reasons before the verdict.
        """
        dumped = self.model_dump(mode="json", exclude_defaults=True)
        if capabilities := dumped.get("constraints", {}).get("capabilities"):
            capabilities.sort()  # the order of a set means nothing, nor does that of labels or providers
        for name in ("metadata", "extras"):
            if name in dumped:
                dumped[name] = dict(sorted(dumped[name].items()))
        return compact_json(dumped)


_MERGED_BY_KEY = frozenset({"constraints", "metadata", "extras"})


def merged_fields(*sources: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of one request from several sources; the last one counts. Constraints, metadata and extras are merged
    key by key, so that adding a deadline doesn't drop `no_training`."""
    fields: dict[str, Any] = {}
    for source in sources:
        for name, value in source.items():
            earlier = fields.get(name, {}) if name in _MERGED_BY_KEY else {}
            if isinstance(value, Mapping):
                if not isinstance(earlier, Mapping):
                    continue  # left as it is, for validation to refuse
                value = {**earlier, **value}
            fields[name] = value
    return fields


# --- the response ----------------------------------------------------------------------------------------


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"
    ERROR = "error"
    OTHER = "other"
    """Also a reason that only another release knows."""

    @classmethod
    def _missing_(cls, value: object) -> FinishReason | None:
        return cls.OTHER if isinstance(value, str) else None


class Usage(Tolerant):
    """Tokens of one call. `input_tokens` includes the cached ones, `output_tokens` the reasoning ones."""

    input_tokens: int = Field(default=0, ge=0)
    cache_read_tokens: int = Field(default=0, ge=0)
    cache_write_tokens: int = Field(default=0, ge=0)
    cache_write_hour_tokens: int = Field(default=0, ge=0)
    """Those of `cache_write_tokens` that are cached for an hour instead of minutes, and cost more."""
    output_tokens: int = Field(default=0, ge=0)
    reasoning_tokens: int = Field(default=0, ge=0)
    web_searches: int = Field(default=0, ge=0)
    """Those that the provider made for the answer, and bills."""
    source: Annotated[
        Literal["reported", "estimated"],
        BeforeValidator(lambda one: one if one == "reported" else "estimated"),
    ] = "reported"
    """`estimated`: the provider reported none, so these are what we expect. A source that only another release
    knows counts as this too, so as not to be taken for the provider's own."""

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens


class InferenceResponse(Tolerant):
    """The answer of one successful call."""

    text: str = Field(default="", repr=False)
    tool_calls: tuple[Annotated[ToolCall, BeforeValidator(partial(without_unknown_fields, model=ToolCall))], ...] = (
        Field(default=(), repr=False)
    )
    refusal: str | None = Field(default=None, repr=False)
    reasoning_content: str | None = Field(default=None, repr=False)
    """The model's reasoning before its tool calls, if the provider demands it back with them."""
    embeddings: tuple[tuple[float, ...], ...] = Field(default=(), repr=False)
    finish: FinishReason = FinishReason.STOP
    finish_raw: str | None = None
    usage: Usage = Usage()
    cost_microusd: int | None = Field(default=None, ge=0)
    """None: unknown, because the endpoint's price or the tokens that it counted are. That never counts as free."""
    provider: str
    model_requested: str
    """Our name for the model that the router chose."""
    model_served: str
    """The model that the provider says it ran."""
    request_id: str | None = None
    """The provider's own id of the call, for its support."""
    latency_s: float = Field(default=0.0, ge=0)
    time_to_first_token_s: float | None = Field(default=None, ge=0)
    warnings: tuple[str, ...] = ()
    simulated: bool = False
    """True: a simulated provider made this answer up; no model ran."""

    def parsed(self, model: type[M]) -> M:
        """The answer as an instance of its `response_model`. Raises pydantic.ValidationError."""
        return model.model_validate_json(self.text)

    @property
    def cost_usd(self) -> float | None:
        return None if self.cost_microusd is None else self.cost_microusd / MICROUSD_PER_USD
