"""What the router knows about a job: its requirements, size, urgency and past. Never its prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from string import ascii_lowercase

from turnout.request import Capability, InferenceRequest, Quality, RoutingConstraints
from turnout_workers.routing.images import Image, ImageRule, Tokens, image_tokens, images_of

USUAL_OUTPUT_TOKENS = 256
"""Expected answer of a job without a limit; with a limit, half of it if that is less."""
DEFAULT_MAX_OUTPUT_TOKENS = 4096
"""Reserved for an answer that neither the job nor the endpoint limits. It is no limit: more may come."""
SCHEMA_TOKENS = 100
"""Upper estimate of what a provider says about a schema, besides the schema."""
TOOLS_TOKENS = 600
"""Upper estimate of the system prompt that comes with tools: Claude's has 159 to 530, by its price list."""
MARK_TOKENS = 2
"""Marks of the beginning and the end of a text to embed, in models like BERT."""
_SMALL_LETTERS = bytes(ord("a") if chr(byte) in ascii_lowercase else 0 for byte in range(256))
"""For `bytes.translate`: small letters become `a`, all other bytes don't."""

NO_CONSTRAINTS = RoutingConstraints()


@dataclass(frozen=True, slots=True)
class Requirements:
    """What an endpoint must be, whatever the job's size. Equal requirements match the same endpoints."""

    models: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    no_training: bool = False
    zero_retention: bool = False
    embeds: bool = False
    """Texts are to be embedded, so a model that does nothing else will do."""
    capabilities: frozenset[Capability] = frozenset()
    image_types: frozenset[str] = frozenset()
    """The media types of the job's images."""
    min_context_tokens: int | None = None
    min_quality: Quality | None = None
    max_input_usd_per_mtok: float | None = None
    max_output_usd_per_mtok: float | None = None
    priced: bool = False
    """The price must be known, because there is a ceiling on what the job may cost."""
    unsuited: frozenset[str] = frozenset()
    """Endpoints that have shown that they can't do this job."""
    pinned: str | None = None
    """The one endpoint that was chosen for a job without fallback."""


@dataclass(frozen=True, slots=True)
class JobProfile:
    """One job as `rank` sees it. Tokens are estimates, times Unix seconds on the store's clock."""

    requirements: Requirements = Requirements()
    input_tokens: int = 1
    """Upper estimate, without images and chat template, which depend on the endpoint: see `upper_input_tokens`."""
    expected_input_tokens: int = 1
    images: tuple[Image, ...] = ()
    output_tokens: int | None = None
    """The job's own limit; None: whatever the endpoint allows."""
    expected_output_tokens: int = USUAL_OUTPUT_TOKENS
    constraints: RoutingConstraints = NO_CONSTRAINTS
    """The job's own: lane, strategy, order, ceilings. What an endpoint must be is in `requirements`."""
    deadline: float | None = None
    timeout_s: float | None = None
    spent_microusd: int = 0
    """Spent, or perhaps spent, by earlier attempts."""
    waiting_since: float | None = None
    """When it was first parked after its last call; None: it wasn't."""
    failures: Mapping[str, int] = field(default_factory=dict)
    """How often this job failed, by endpoint id."""

    def input_at(self, rule: ImageRule) -> Tokens:
        """Input tokens including images, which are counted by this rule."""
        if not self.images:
            return Tokens(self.expected_input_tokens, self.input_tokens)
        images = image_tokens(rule, self.images)
        return Tokens(self.expected_input_tokens + images.expected, self.input_tokens + images.upper)

    @property
    def cost_left_microusd(self) -> float:
        """What may still be spent under the job's ceiling; infinite without one."""
        ceiling = self.constraints.max_cost_microusd
        return math.inf if ceiling is None else ceiling - self.spent_microusd

    @classmethod
    def of(
        cls,
        request: InferenceRequest,
        *,
        deadline: float | None = None,
        spent_microusd: int = 0,
        failures: Mapping[str, int] | None = None,
        waiting_since: float | None = None,
        unsuited: frozenset[str] = frozenset(),
        pinned: str | None = None,
        priced: bool = False,
    ) -> JobProfile:
        """The profile of a request. deadline: as fixed when the job was accepted, if it has one.

        priced: a ceiling that isn't the job's own, such as its tenant's, requires a known price.
        """
        constraints = request.constraints
        upper, expected = estimate_input_tokens(request)
        images = images_of(request)
        limit = 0 if request.is_embedding else request.max_output_tokens
        usual = USUAL_OUTPUT_TOKENS if limit is None else min(USUAL_OUTPUT_TOKENS, math.ceil(limit / 2))
        return cls(
            requirements=Requirements(
                models=request.models,
                only=constraints.only,
                ignore=constraints.ignore,
                regions=constraints.regions,
                no_training=constraints.no_training,
                zero_retention=constraints.zero_retention,
                embeds=request.is_embedding,
                capabilities=request.required_capabilities,
                image_types=frozenset(image.media_type for image in images),
                min_context_tokens=constraints.min_context_tokens,
                min_quality=constraints.min_quality,
                max_input_usd_per_mtok=constraints.max_input_usd_per_mtok,
                max_output_usd_per_mtok=constraints.max_output_usd_per_mtok,
                priced=priced or constraints.max_cost_usd is not None,
                unsuited=unsuited,
                pinned=pinned,
            ),
            input_tokens=upper,
            expected_input_tokens=expected,
            images=images,
            output_tokens=limit,
            expected_output_tokens=usual,
            constraints=constraints,
            deadline=deadline,
            timeout_s=request.timeout_s,
            spent_microusd=spent_microusd,
            waiting_since=waiting_since,
            failures=failures or {},
        )


def estimate_input_tokens(request: InferenceRequest) -> tuple[int, int]:
    """Upper and expected number of input tokens, from the bytes of the text and the tools' JSON, with 8 per message.
    Images are counted elsewhere, see `images_of`.

    Expected: one per four bytes, as in English. Upper: one per two adjacent small letters and one per other byte, which
    a digit or a rare script may take; and what a provider adds unseen, apart from its chat template.
    """
    messages, texts = request.messages or (), [request.prompt or "", *request.texts]
    for message in messages:
        texts += message.text, message.reasoning_content or ""
        texts += (f"{call.function.name}{call.function.arguments}" for call in message.tool_calls)
    texts += (tool.model_dump_json() for tool in request.tools)
    has_schema = request.response_format.json_schema is not None
    if has_schema:
        texts.append(request.response_format.model_dump_json())
    text = "".join(texts)
    fixed = 8 * (len(messages) or request.prompt is not None)
    unseen = MARK_TOKENS * len(request.texts) + SCHEMA_TOKENS * has_schema + TOOLS_TOKENS * bool(request.tools)
    return upper_text_tokens(text) + fixed + unseen, max(1, math.ceil(len(text.encode()) / 4) + fixed)


def upper_text_tokens(text: str) -> int:
    """Upper estimate of a text's tokens: one per two adjacent small letters and one per other byte."""
    encoded = text.encode(errors="surrogatepass")
    return len(encoded) - encoded.translate(_SMALL_LETTERS).count(b"aa")
