"""Which endpoints could ever take a job, and why each of the others can't.

Two questions are kept apart. *Never*: this endpoint, as configured, doesn't satisfy the job; answered here,
from configuration and the job alone. *Not now*: it would, but it is ejected, cooling down or full; answered
by `options.py`, from a snapshot. A job that no endpoint could ever satisfy is refused; all others wait.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import TypeVar

from turnout.errors import TurnoutError
from turnout.request import Capability
from turnout_workers.routing.fleet import TEMPLATE_TOKENS, TOKEN_LIMITS, Endpoint, EndpointView, Fleet
from turnout_workers.routing.profile import DEFAULT_MAX_OUTPUT_TOKENS, JobProfile, Requirements

Why = TypeVar("Why")

MAX_NAMED, MAX_REASONS = 3, 5
"""Endpoints per reason, and reasons, in a refusal's message. A decision's JSON names as many endpoints per reason."""
MAX_MATCHES = 1024
"""Sets of requirements whose matches are remembered."""
EMBEDS_ONLY = frozenset({Capability.EMBEDDINGS})
"""The capabilities of a model that can't chat."""


class Reason(StrEnum):
    """Why an endpoint isn't a candidate. The first group means never, the second not now."""

    @property
    def is_temporary(self) -> bool:
        return self in _TEMPORARY

    MODEL = "model"
    NOT_IN_ONLY = "only"
    IGNORED = "ignore"
    REGION = "region"
    TRAINING = "no_training"
    RETENTION = "zero_retention"
    CAPABILITY = "capability"
    QUALITY = "quality"
    CONTEXT = "context"
    OUTPUT = "output"
    LIMIT = "limit"
    PRICE_UNKNOWN = "price_unknown"
    PRICE = "price"
    COST = "cost"
    UNSUITED = "unsuited"
    PINNED = "pinned"

    TRIED = "tried"
    COOLDOWN = "cooldown"
    FULL = "full"
    OPEN = "open"
    PROBING = "probing"
    SLOW = "slow"
    UNPROVEN = "unproven"
    DISABLED = "disabled"
    ISOLATED = "isolated"
    CEILING = "ceiling"


_TEMPORARY = frozenset(list(Reason)[list(Reason).index(Reason.TRIED) :])


@dataclass(frozen=True, slots=True)
class Exclusion:
    """Why one endpoint isn't a candidate; `until`: when a temporary reason ends, if that is known."""

    endpoint_id: str
    reason: Reason
    text: str
    until: float | None = None


ExclusionSummary = tuple[str, str, list[str], int]
"""A reason, its text, some of the endpoints excluded for it, and how many more there are."""


def summarized(exclusions: Iterable[Exclusion]) -> list[ExclusionSummary]:
    """Exclusions by reason: most endpoints of a large fleet share a few."""
    by_reason = _ids_by(((one.reason.value, one.text), one.endpoint_id) for one in exclusions)
    return [(*why, ids[:MAX_NAMED], len(ids[MAX_NAMED:])) for why, ids in by_reason.items()]


def _ids_by(excluded: Iterable[tuple[Why, str]]) -> dict[Why, list[str]]:
    ids: dict[Why, list[str]] = {}
    for why, endpoint_id in excluded:
        ids.setdefault(why, []).append(endpoint_id)
    return ids


class NoEligibleEndpoint(TurnoutError):
    """No registered endpoint could ever satisfy this job. `reasons` says why, by endpoint id; the message sums up."""

    def __init__(self, reasons: Mapping[str, str]) -> None:
        super().__init__(reasons)
        self.reasons = dict(reasons)

    def __str__(self) -> str:
        return f"no endpoint can serve this job: {_summary(self.reasons) or 'none is registered'}"


def _summary(reasons: Mapping[str, str]) -> str:
    """The reasons, rarest first because those endpoints came nearest; not all, if there are many."""
    by_reason = _ids_by((reason, endpoint_id) for endpoint_id, reason in reasons.items())
    ranked = sorted(by_reason.items(), key=lambda pair: len(pair[1]))
    named = [f"{', '.join(ids[:MAX_NAMED])}{_more(ids[MAX_NAMED:])}: {why}" for why, ids in ranked[:MAX_REASONS]]
    unnamed = [id for _, ids in ranked[MAX_REASONS:] for id in ids]
    return "; ".join(named) + _more(unnamed)


def _more(ids: Sequence[str]) -> str:
    return f" and {len(ids):,} more" if ids else ""


@dataclass(frozen=True, slots=True)
class Match:
    """The endpoints of a fleet that satisfy some requirements, by position, and why the others don't.

    The numbers are the tightest limits and the highest prices among them: they show that most jobs fit everywhere.
    """

    positions: tuple[int, ...]
    exclusions: tuple[Exclusion, ...]
    summaries: list[ExclusionSummary]
    """The same, summarized."""
    max_call_tokens: float
    """Input and answer."""
    max_output_tokens: float
    longest_answer: float
    """In tokens, to a job that sets no limit."""
    input_price: float
    output_price: float
    """Infinite if one is unknown."""

    def fits_everywhere(self, job: JobProfile) -> bool:
        """Whether the job is `unfit` for none of them, as far as one look at all can show."""
        answer, input_tokens = job.output_tokens or 0, job.input_tokens + TEMPLATE_TOKENS
        most_microusd = input_tokens * self.input_price + (answer or self.longest_answer) * self.output_price
        return (
            not job.images  # which take more at one endpoint than at another
            and job.expected_input_tokens + answer <= self.max_call_tokens
            and answer <= self.max_output_tokens
            and most_microusd <= job.cost_left_microusd
        )


@lru_cache(MAX_MATCHES)
def match(fleet: Fleet, wanted: Requirements) -> Match:
    """The endpoints that satisfy `wanted`. Remembered: a decision looks only at those that could take the job."""
    positions, exclusions = [], []
    for position, endpoint in enumerate(fleet.endpoints):
        unmet = _unmet(wanted, endpoint)
        if unmet is None:
            positions.append(position)
        else:
            exclusions.append(Exclusion(endpoint.id, *unmet))
    found = [fleet.endpoints[position] for position in positions]
    prices = [price for endpoint in found for price in (endpoint.price.steps if endpoint.price else (None,))]
    return Match(
        positions=tuple(positions),
        exclusions=tuple(exclusions),
        summaries=summarized(exclusions),
        max_call_tokens=min(
            (min(one.context_tokens or math.inf, one.max_call_tokens) for one in found), default=math.inf
        ),
        max_output_tokens=min((one.max_output_tokens or math.inf for one in found), default=math.inf),
        longest_answer=max(map(_longest_answer, found), default=0.0),
        input_price=max((price.dearest_input if price else math.inf for price in prices), default=0.0),
        output_price=max((price.output if price else math.inf for price in prices), default=0.0),
    )


def _unmet(wanted: Requirements, endpoint: Endpoint) -> tuple[Reason, str] | None:
    """The first requirement that the endpoint, as configured, doesn't meet; None: it meets all."""
    if wanted.models and not any(endpoint.serves(model) for model in wanted.models):
        return Reason.MODEL, f"doesn't serve {' or '.join(wanted.models)}"
    if wanted.only and endpoint.provider not in wanted.only:
        return Reason.NOT_IN_ONLY, f"only {', '.join(wanted.only)} may be used"
    if endpoint.provider in wanted.ignore:
        return Reason.IGNORED, f"the job ignores {endpoint.provider}"
    if wanted.regions and not endpoint.regions:
        return Reason.REGION, "its region is unknown"
    if wanted.regions and not endpoint.regions <= frozenset(wanted.regions):
        elsewhere = sorted(endpoint.regions - frozenset(wanted.regions))
        return (
            Reason.REGION,
            f"may process in {', '.join(elsewhere)}, not only in {', '.join(wanted.regions)}",
        )
    if wanted.no_training and not endpoint.no_training:
        return Reason.TRAINING, "may train on the data"
    if wanted.zero_retention and not endpoint.zero_retention:
        return Reason.RETENTION, "may retain the data"
    if endpoint.capabilities == EMBEDS_ONLY and not wanted.embeds:
        return Reason.CAPABILITY, "only embeds texts"
    if missing := wanted.capabilities - endpoint.capabilities:
        return Reason.CAPABILITY, f"lacks {', '.join(sorted(missing))}"
    if endpoint.image_types and (others := wanted.image_types - endpoint.image_types):
        return Reason.CAPABILITY, f"takes no {' or '.join(sorted(others))}"
    if wanted.min_quality and (endpoint.quality is None or endpoint.quality.rank < wanted.min_quality.rank):
        return Reason.QUALITY, f"quality {endpoint.quality or 'unknown'} is below {wanted.min_quality}"
    if wanted.min_context_tokens and (endpoint.context_tokens or 0) < wanted.min_context_tokens:
        context = endpoint.context_tokens or "unknown"
        return Reason.CONTEXT, f"context {context}, at least {wanted.min_context_tokens} wanted"
    if endpoint.id in wanted.unsuited:
        return Reason.UNSUITED, "has shown that it can't do this job"
    if wanted.pinned is not None and endpoint.id != wanted.pinned:
        return Reason.PINNED, f"{wanted.pinned} was chosen, and the job may not fall back"
    return _overpriced(wanted, endpoint)


def _overpriced(wanted: Requirements, endpoint: Endpoint) -> tuple[Reason, str] | None:
    ceilings = (wanted.max_input_usd_per_mtok, wanted.max_output_usd_per_mtok)
    if endpoint.price is None:
        if wanted.priced or ceilings != (None, None):
            return Reason.PRICE_UNKNOWN, "its price is unknown, and the job has a ceiling"
        return None
    prices = (endpoint.price.input, endpoint.price.output)
    for name, price, ceiling in zip(("input", "output"), prices, ceilings, strict=True):
        if ceiling is not None and price > ceiling:
            return Reason.PRICE, f"{name} costs ${price:g} per million tokens, ceiling ${ceiling:g}"
    return None


def unfit(job: JobProfile, endpoint: Endpoint) -> tuple[Reason, str] | None:
    """Why this job can't be done there, though its requirements are met: its size, or what is left of its money."""
    answer = job.output_tokens or 0
    if endpoint.max_output_tokens is not None and answer > endpoint.max_output_tokens:
        return Reason.OUTPUT, f"answers with at most {endpoint.max_output_tokens} tokens, {answer} wanted"
    input_tokens = job.input_at(endpoint.image_rule).expected
    needed = input_tokens + answer
    if endpoint.context_tokens is not None and needed > endpoint.context_tokens:
        return Reason.CONTEXT, f"context {endpoint.context_tokens}, about {needed} needed"
    for name in TOKEN_LIMITS:
        tokens, limit = input_tokens if name.startswith("input") else needed, endpoint.token_limit(name)
        if tokens > limit:
            return Reason.LIMIT, f"{name} is {limit:.0f}, about {tokens} needed at once"
    cost, left = upper_cost_microusd(job, endpoint), job.cost_left_microusd
    if cost is not None and cost > left:
        return Reason.COST, f"may cost ${cost / 1e6:.6f}, ${max(0, left) / 1e6:.6f} of its ceiling left"
    return None


def upper_input_tokens(job: JobProfile, endpoint: Endpoint) -> int:
    """The most that the request can take, with what the endpoint adds to it."""
    template_tokens = 0 if job.requirements.embeds else endpoint.template_tokens
    return job.input_at(endpoint.image_rule).upper + template_tokens


def upper_output_tokens(job: JobProfile, endpoint: Endpoint) -> int:
    """The longest answer that the call can give."""
    return _longest_answer(endpoint) if job.output_tokens is None else job.output_tokens


def charged_tokens(job: JobProfile, view: EndpointView) -> tuple[int, int]:
    """Input and output tokens that rate limits are charged until the answer shows how many it took.

    For the output that is the job's own limit if the provider reserves it, otherwise the usual length, because a
    model's longest answer is more than many limits allow in a minute. An input that may exceed a limit is charged as
    expected: it would have to wait until nothing else is charged, while a refusal by the provider costs nothing.
    """
    endpoint = view.endpoint
    input_tokens = upper_input_tokens(job, endpoint)
    if input_tokens > endpoint.max_call_tokens:
        input_tokens = job.input_at(endpoint.image_rule).expected
    answer = upper_output_tokens(job, endpoint)
    if not endpoint.limits_count_cached:
        input_tokens = max(1, math.ceil(input_tokens * (1 - view.metrics.cached_share)))
    if job.output_tokens is None or not endpoint.limits_count_max_output:
        answer = min(answer, job.expected_output_tokens)
    return input_tokens, answer


def _longest_answer(endpoint: Endpoint) -> int:
    """To a job that sets no limit. Some models have no limit but their context."""
    return endpoint.max_output_tokens or endpoint.context_tokens or DEFAULT_MAX_OUTPUT_TOKENS


def upper_cost_microusd(job: JobProfile, endpoint: Endpoint) -> int | None:
    """The most that one call can cost; None: the price is unknown."""
    if endpoint.price is None:
        return None
    return endpoint.price.upper_microusd(upper_input_tokens(job, endpoint), upper_output_tokens(job, endpoint))


def refusal(job: JobProfile, fleet: Fleet) -> NoEligibleEndpoint | None:
    """Why no endpoint could ever satisfy the job; None: at least one could."""
    found = match(fleet, job.requirements)
    reasons = {exclusion.endpoint_id: exclusion.text for exclusion in found.exclusions}
    for position in found.positions:
        why = unfit(job, fleet.endpoints[position])
        if why is None:
            return None
        reasons[fleet.ids[position]] = why[1]
    return NoEligibleEndpoint({id: reasons[id] for id in fleet.ids})
