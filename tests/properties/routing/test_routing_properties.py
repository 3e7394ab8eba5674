"""What holds of every decision, verdict and ejection, whatever the fleet and the job."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.routing.fleets import NOW, changed, snapshot

from turnout.request import Capability, Lane, Quality, RoutingConstraints, RoutingStrategy
from turnout_workers.routing import Endpoint
from turnout_workers.routing.decision import Action, rank
from turnout_workers.routing.decision_log import to_json_dict
from turnout_workers.routing.eligibility import refusal, unfit, upper_cost_microusd
from turnout_workers.routing.failover import History, Next, backoff_s, judge
from turnout_workers.routing.failure import Failure, FailureKind
from turnout_workers.routing.fleet import (
    Circuit,
    EndpointView,
    Fleet,
    Health,
    Limits,
    Load,
    Price,
    ProviderMetrics,
)
from turnout_workers.routing.health import MAX_EJECTION_S, circuit, ejection_s
from turnout_workers.routing.latency import (
    BUCKETS,
    PRIOR_TTFT_S,
    bucket,
    chance_of_exceeding,
    observed_quantile,
    predict,
    step,
)
from turnout_workers.routing.profile import JobProfile, Requirements

seconds = st.floats(-30, 30).map(lambda s: NOW + s)
shares = st.floats(0, 1)
usd = st.just(0.0) | st.floats(1e-3, 80)
flat = st.builds(Price, usd, usd, st.none() | usd, st.none() | usd)
prices = st.none() | flat | st.builds(replace, flat, longer=st.tuples(st.integers(100, 3000), flat))
regions = st.frozensets(st.sampled_from(["eu", "us", "ch"]))
capabilities = st.frozensets(st.sampled_from(list(Capability)), max_size=2)

endpoints = st.builds(
    Endpoint,
    provider=st.sampled_from(["groq", "azure", "gemini"]),
    model=st.sampled_from(["llama", "gpt"]),
    served_model=st.just("served"),
    account=st.integers(0, 9).map(str),
    priority=st.integers(0, 3),
    weight=st.floats(0, 5),
    price=prices,
    limits=st.builds(Limits, concurrency=st.none() | st.integers(1, 4)),
    capabilities=capabilities,
    context_tokens=st.none() | st.integers(100, 4000),
    max_output_tokens=st.none() | st.integers(50, 1000),
    quality=st.none() | st.sampled_from(list(Quality)),
    regions=regions,
    no_training=st.booleans(),
)


def built(kind: Any, **parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Named tuples with defaults in their other fields, which `builds` would draw too."""
    return st.fixed_dictionaries(parts).map(lambda known: kind(**known))


healths = built(
    Health,
    open_until=st.just(0.0) | seconds,
    ejections=st.integers(0, 5),
    recovered_at=st.just(0.0) | seconds,
    cooldown_until=st.just(0.0) | seconds,
    disabled=st.none() | st.none() | st.just("bad key"),
    isolated=st.sampled_from([None, None, None, "maintenance"]),
    consecutive_failures=st.integers(0, 3),
    probing=st.booleans(),
)
metrics = built(
    ProviderMetrics,
    ttft_s=st.none() | st.floats(0.001, 60),
    s_per_token=st.none() | st.floats(0, 0.5),
    sigma=st.floats(0, 2),
    latency_at=seconds,
    latency_samples=st.integers(0, 9),
    error_rate=shares,
    error_weight=st.floats(0, 99),
)
loads = built(
    Load,
    in_flight=st.integers(0, 9),
    oldest_started_at=seconds,
    free=shares,
    ready_at=st.just(0.0) | seconds,
)
fleets = st.lists(
    st.builds(EndpointView, endpoints, healths, metrics, loads), max_size=8, unique_by=lambda view: view.endpoint.id
)
requirements = st.builds(
    Requirements,
    models=st.sampled_from([(), ("llama",), ("gpt", "llama")]),
    only=st.sampled_from([(), (), ("groq", "azure")]),
    ignore=st.sampled_from([(), ("gemini",)]),
    regions=st.sampled_from([(), (), ("eu", "ch")]),
    no_training=st.booleans(),
    capabilities=capabilities,
    min_quality=st.none() | st.sampled_from(list(Quality)),
    max_input_usd_per_mtok=st.none() | st.floats(0, 50),
)
jobs = st.builds(
    JobProfile,
    requirements=requirements,
    input_tokens=st.integers(1, 4000),
    expected_input_tokens=st.integers(1, 2000),
    output_tokens=st.none() | st.integers(0, 800),
    expected_output_tokens=st.integers(0, 800),
    deadline=st.none() | seconds,
    waiting_since=st.none() | st.floats(0, 9000).map(lambda s: NOW - s),
    constraints=st.builds(
        RoutingConstraints,
        max_latency_s=st.none() | st.floats(0.1, 60),
        max_cost_usd=st.none() | st.floats(0, 0.1),
        lane=st.sampled_from(list(Lane)),
        strategy=st.none() | st.sampled_from(list(RoutingStrategy)),
        order=st.sampled_from([(), ("azure", "groq")]),
    ),
    failures=st.dictionaries(st.sampled_from(["groq/llama#1", "azure/gpt#2"]), st.integers(0, 3)),
)
simple = st.sampled_from(list(RoutingStrategy)).map(
    lambda one: JobProfile(constraints=RoutingConstraints(strategy=one))
)
seeds = st.integers(0, 2**32 - 1)


def decision(job: JobProfile, views: list[EndpointView], seed: int, **options: Any) -> Any:
    return rank(job, snapshot(*views), NOW, random.Random(seed), **options)


def offered(made: Any) -> set[str]:
    return {candidate.endpoint.id for candidate in made.candidates}


@given(jobs | simple, fleets, seeds)
@settings(max_examples=150)
def test_every_candidate_is_eligible_and_may_be_called_now(
    job: JobProfile, views: list[EndpointView], seed: int
) -> None:
    made = decision(job, views, seed)
    by_id = {view.endpoint.id: view for view in views}
    for candidate, index in zip(made.candidates, made.ready, strict=True):
        view, probe = by_id[candidate.endpoint.id], made.ranking.option(index).probe
        assert refusal(job, Fleet([candidate.endpoint])) is None
        assert circuit(view.health, NOW) in (Circuit.CLOSED, Circuit.RAMPING, Circuit.HALF_OPEN)
        assert probe == (circuit(view.health, NOW) is Circuit.HALF_OPEN)
        assert not (probe and view.health.probing)
        assert max(view.health.cooldown_until, view.load.ready_at) <= NOW
        if not job.requirements.priced and candidate.endpoint.price:
            assert candidate.upper_cost_microusd <= job.cost_left_microusd
        assert candidate.timeout_s > 0
    assert all(0 <= p_late <= 1 for p_late in made.ranking.late)
    for asked in (made, made.offering_busy()):
        assert [bid.endpoint.id for bid in asked.bids()[:1]] == [best.endpoint.id for best in asked.candidates[:1]]


@given(jobs | simple, fleets, seeds)
@settings(max_examples=120)
def test_every_endpoint_is_a_candidate_or_has_a_reason(job: JobProfile, views: list[EndpointView], seed: int) -> None:
    made = decision(job, views, seed)
    excluded = [exclusion.endpoint_id for exclusion in made.exclusions]
    assert sorted([*offered(made), *excluded]) == sorted(view.endpoint.id for view in views)


@given(jobs | simple, fleets, seeds)
@settings(max_examples=120)
def test_a_decision_goes_waits_a_bounded_time_or_refuses_for_good(
    job: JobProfile, views: list[EndpointView], seed: int
) -> None:
    made = decision(job, views, seed)
    never = refusal(job, Fleet(view.endpoint for view in views))
    assert (made.action is Action.REFUSE) == (never is not None)
    if made.action is Action.GO:
        assert made.candidates
    elif made.action is Action.WAIT:
        assert 0 < made.wait_s <= 60 + 0.5 * 800, "for a slot, what the longest answer takes"


CONSTRAINTS: list[dict[str, Any]] = [
    {"models": ("llama",)}, {"only": ("groq",)}, {"ignore": ("groq",)}, {"regions": ("eu",)}, {"no_training": True},
    {"zero_retention": True}, {"capabilities": frozenset({Capability.TOOLS})}, {"min_quality": Quality.GOOD},
    {"min_context_tokens": 1000}, {"max_input_usd_per_mtok": 1.0}, {"max_output_usd_per_mtok": 1.0},
    {"priced": True}, {"unsuited": frozenset({"groq/llama#1"})},
]  # fmt: skip


@given(jobs | simple, fleets, st.sampled_from(CONSTRAINTS))
@settings(max_examples=150)
def test_one_more_constraint_never_adds_an_eligible_endpoint(
    job: JobProfile, views: list[EndpointView], more: dict[str, Any]
) -> None:
    def eligible(wanted: JobProfile) -> set[str]:
        return {view.endpoint.id for view in views if refusal(wanted, Fleet([view.endpoint])) is None}

    loose = replace(job, requirements=Requirements(), constraints=RoutingConstraints())
    assert eligible(replace(loose, requirements=replace(Requirements(), **more))) <= eligible(loose)
    assert eligible(replace(loose, constraints=RoutingConstraints(max_cost_usd=1e-4))) <= eligible(loose)


@given(jobs | simple, fleets, seeds)
@settings(max_examples=80)
def test_a_decision_is_repeated_from_its_record(job: JobProfile, views: list[EndpointView], seed: int) -> None:
    made = decision(job, views, seed)
    assert to_json_dict(decision(job, views, seed)) == to_json_dict(made)
    if made.candidates or made.busy:
        assert changed([to_json_dict(made), to_json_dict(made.offering_busy())]) == []


@given(fleets, seeds, st.sampled_from(list(Lane)), st.data())
@settings(max_examples=150)
def test_no_endpoint_is_tried_twice_while_an_untried_one_is_offered(
    views: list[EndpointView], seed: int, lane: Lane, data: st.DataObject
) -> None:
    ids = [view.endpoint.id for view in views]
    tried = frozenset(data.draw(st.lists(st.sampled_from(ids))) if ids else [])
    found = offered(decision(JobProfile(constraints=RoutingConstraints(lane=lane)), views, seed, tried=tried))
    assert not found & tried or not found - tried


failures = st.builds(
    Failure,
    kind=st.sampled_from(list(FailureKind)),
    message=st.just(""),
    retry_after_s=st.none() | st.floats(0, 7200),
)


@given(failures, seeds, st.integers(1, 20), st.integers(0, 5), st.booleans(), st.booleans(), st.booleans())
@settings(max_examples=150)
def test_verdicts_are_bounded_and_heed_retry_after(
    failure: Failure, seed: int, attempt: int, retries: int, left: bool, untried: bool, fallback: bool
) -> None:
    verdict = judge(
        failure,
        random.Random(seed),
        History(attempt=attempt, retries_here=retries),
        may_retry=left,
        has_untried=untried,
        allow_fallback=fallback,
    )
    assert 0 <= verdict.delay_s <= max(8, 3600, failure.retry_after_s or 0) * 1.1
    if verdict.cooldown_s:
        assert verdict.cooldown_s >= (failure.retry_after_s or 0)
    if verdict.action is Next.FAIL_OVER:
        assert untried
        assert fallback
    if verdict.action is Next.RETRY:
        assert retries < 2
    if verdict.spends_attempt:
        assert verdict.action is Next.GIVE_UP or attempt < 8


@given(st.integers(0, 1000), seeds, st.floats(0.1, 100))
def test_backoff_and_ejection_stay_within_bounds(count: int, seed: int, base_s: float) -> None:
    rng = random.Random(seed)
    assert 0 <= backoff_s(count, rng) <= 8
    assert base_s * 0.85 <= ejection_s(count, rng, base_s) <= max(base_s, MAX_EJECTION_S) * 1.15


@given(endpoints, metrics, st.floats(0, 1e6))
def test_a_prediction_lies_between_prior_and_observation(at: Endpoint, known: ProviderMetrics, later_s: float) -> None:
    ttft, _ = predict(at, known, NOW + later_s)
    prior = PRIOR_TTFT_S if at.expected_ttft_s is None else at.expected_ttft_s
    low, high = sorted((prior, prior if known.ttft_s is None else known.ttft_s))
    assert low - 1e-9 <= ttft <= high + 1e-9


@given(st.floats(0.001, 100), st.floats(0.001, 100), st.floats(0, 1000), st.booleans())
def test_an_estimate_moves_towards_its_sample_and_not_beyond(
    old: float, sample: float, elapsed_s: float, relieved: bool
) -> None:
    new = step(old, sample, elapsed_s, relieved)
    assert min(old, sample) - 1e-9 <= new <= max(old, sample) + 1e-9
    assert new != old or sample == old or abs(sample - old) < 1e-9


@given(st.floats(-10, 1000), st.floats(0.001, 100), st.floats(0.25, 2))
def test_the_chance_of_being_late_falls_with_the_time_left(left_s: float, median_s: float, sigma: float) -> None:
    chance = chance_of_exceeding(left_s, median_s, sigma)
    assert 0 <= chance_of_exceeding(left_s + 1, median_s, sigma) <= chance <= 1


@given(st.floats(0.01, 600))
def test_a_latency_is_known_to_within_the_width_of_its_bucket(latency_s: float) -> None:
    counts = [int(number == bucket(latency_s)) for number in range(BUCKETS)]
    upper_s = observed_quantile(counts, 0.99)
    assert upper_s is not None
    assert latency_s <= upper_s + 5e-4 <= 1.42 * latency_s + 1e-3


@given(jobs, endpoints)
def test_what_is_not_too_large_costs_no_more_than_the_ceiling(job: JobProfile, at: Endpoint) -> None:
    cost = upper_cost_microusd(job, at)
    if unfit(job, at) is None and cost is not None:
        assert cost <= job.cost_left_microusd
