"""What the router knows of a job: its requirements, its size, its urgency and its past. Never its prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from turnout.request import Capability, InferenceRequest, Quality, RoutingConstraints
from turnout_workers.routing.images import Image, ImageRule, Tokens, image_tokens, images_of

USUAL_OUTPUT_TOKENS = 256
"""Expected answer of a job that doesn't limit it; of one that does, half its limit if that is less."""
MAX_OUTPUT_TOKENS = 4096
"""Upper estimate of an answer that neither the job nor the endpoint limits."""

NO_CONSTRAINTS = RoutingConstraints()


@dataclass(frozen=True, slots=True)
class Requirements:
    """What an endpoint must be, whatever the job's size: equal requirements match the same endpoints."""

    models: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    no_training: bool = False
    zero_retention: bool = False
    embeds: bool = False
    """Texts are to be embedded, so that a model which does nothing else will do."""
    capabilities: frozenset[Capability] = frozenset()
    min_context_tokens: int | None = None
    min_quality: Quality | None = None
    max_input_usd_per_mtok: float | None = None
    max_output_usd_per_mtok: float | None = None
    priced: bool = False
    """The price must be known, for there is a ceiling on what the job may cost."""
    unsuited: frozenset[str] = frozenset()
    """Endpoints that have shown that they can't do this very job."""
    pinned: str | None = None
    """The one endpoint that was chosen for a job without fallback."""


@dataclass(frozen=True, slots=True)
class JobProfile:
    """One job as `rank` sees it. Tokens are estimates, times Unix seconds on the store's clock."""

    requirements: Requirements = Requirements()
    input_tokens: int = 1
    """Upper estimate, without images: with them it depends on the endpoint, see `input_at`."""
    expected_input_tokens: int = 1
    images: tuple[Image, ...] = ()
    output_tokens: int | None = None
    """The job's own limit; None: whatever the endpoint allows."""
    expected_output_tokens: int = USUAL_OUTPUT_TOKENS
    constraints: RoutingConstraints = NO_CONSTRAINTS
    """What is the job's own: lane, strategy, order, ceilings. What an endpoint must be is in `requirements`."""
    deadline: float | None = None
    timeout_s: float | None = None
    spent_microusd: int = 0
    """Spent, or perhaps spent, by earlier attempts."""
    waiting_since: float | None = None
    """When it was parked first after its last call; None: it was not."""
    failures: Mapping[str, int] = field(default_factory=dict)
    """How often this job failed, by endpoint id."""

    def input_at(self, rule: ImageRule) -> Tokens:
        """Input tokens, images and all, where images are counted by this rule."""
        if not self.images:
            return Tokens(self.expected_input_tokens, self.input_tokens)
        images = image_tokens(rule, self.images)
        return Tokens(self.expected_input_tokens + images.expected, self.input_tokens + images.upper)

    def charged_at(self, rule: ImageRule) -> int:
        """What a call takes of rate limits until it is known."""
        output = self.expected_output_tokens if self.output_tokens is None else self.output_tokens
        return self.input_at(rule).upper + output

    @property
    def cost_left_microusd(self) -> float:
        """What may still be spent under the job's ceiling; infinite without one."""
        most = self.constraints.max_cost_microusd
        return math.inf if most is None else most - self.spent_microusd

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
        """The profile of a request. deadline: as it was fixed when the job was accepted, if it was.

        priced: a ceiling that isn't the job's own, such as its tenant's, needs to know what it costs.
        """
        constraints = request.constraints
        upper, expected = estimate_input_tokens(request)
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
            images=images_of(request),
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
    """Upper and expected number of input tokens, from the bytes of the text; images are `images_of`.

    Ordinary text takes no more than a token for two bytes, and English about one for four:
    `ceil(bytes / 2)` and `ceil(bytes / 4)`, each with 8 a message and the tools' JSON.
    """
    messages = request.messages or ()
    size = sum(len(text.encode()) for text in (request.prompt or "", *request.texts))
    for message in messages:
        size += len(message.text.encode()) + len((message.reasoning_content or "").encode())
        size += sum(len(call.function.arguments.encode()) for call in message.tool_calls)
    size += sum(len(tool.model_dump_json().encode()) for tool in request.tools)
    if request.response_format.json_schema is not None:
        size += len(request.response_format.model_dump_json().encode())
    fixed = 8 * (len(messages) or request.prompt is not None)
    return max(1, math.ceil(size / 2) + fixed), max(1, math.ceil(size / 4) + fixed)
