"""Which endpoint a job goes to under each strategy, when it waits instead, and how that is explained."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from tests.unit.routing.fleets import (
    NOW,
    changed,
    chosen,
    decide,
    endpoint,
    job,
    observed,
    reasons,
    request,
    snapshot,
    view,
)

from turnout.request import Lane, RoutingStrategy
from turnout_workers.routing.decision import Action, rank, worth_retrying
from turnout_workers.routing.decision_log import candidates, choices, excluded, to_json_dict
from turnout_workers.routing.estimate import amend
from turnout_workers.routing.fleet import EndpointView, Health, Limits, Load, Price, ProviderMetrics
from turnout_workers.routing.options import COOLDOWN_SPREAD_S
from turnout_workers.routing.profile import JobProfile
from turnout_workers.routing.strategies import URGENCY

S = RoutingStrategy
CHEAP = view(endpoint("cheap", price=Price(0.1, 0.1)), metrics=observed(3.0))
FAST = view(endpoint("fast", price=Price(5, 5)), metrics=observed(0.2, 0.001))
MIDDLE = view(
    endpoint("middle", price=Price(1, 1), priority=1, expected_ttft_s=1.0, expected_s_per_token=0.01),
    metrics=observed(1.0),
)


def first(strategy: RoutingStrategy, *parts: EndpointView, **constraints: Any) -> str:
    return chosen(decide(job(strategy=strategy, **constraints), *parts))[0]


@pytest.mark.parametrize(
    ("strategy", "constraints", "expected"),
    [
        (S.COST_OPTIMIZED, {}, "cheap"),
        (S.LATENCY_OPTIMIZED, {}, "fast"),
        (S.PRIORITY, {}, "middle"),
        (S.FAILOVER, {}, "middle"),
        (S.BALANCED, {}, "cheap"),
        (S.BALANCED, {"deadline_s": 600}, "cheap"),
        (S.BALANCED, {"deadline_s": 3}, "middle"),
        (S.BALANCED, {"deadline_s": 1}, "fast"),
        (S.COST_OPTIMIZED, {"deadline_s": 3}, "middle"),
        (S.PRIORITY, {"deadline_s": 1}, "fast"),
        (S.BALANCED, {"order": ("fast", "middle")}, "fast"),
        (S.COST_OPTIMIZED, {"order": ("nobody", "middle")}, "middle"),
        (S.LATENCY_OPTIMIZED, {"max_cost_usd": 250e-6}, "middle"),
    ],
)
def test_each_strategy_takes_what_it_is_for(
    strategy: RoutingStrategy, constraints: dict[str, Any], expected: str
) -> None:
    assert first(strategy, CHEAP, FAST, MIDDLE, **constraints) == expected


def test_the_default_strategy_holds_where_the_job_names_none() -> None:
    parts = (CHEAP, FAST, MIDDLE)
    assert chosen(decide(job(), *parts, default_strategy=S.LATENCY_OPTIMIZED))[0] == "fast"
    assert chosen(decide(job(strategy="cost"), *parts, default_strategy=S.LATENCY_OPTIMIZED))[0] == "cheap"


def test_an_unknown_price_ranks_behind_every_known_one_and_is_never_a_number() -> None:
    unknown = view(endpoint("unknown", price=None), metrics=observed(0.1))
    decision = decide(job(strategy="cost"), unknown, CHEAP, FAST)
    assert chosen(decision) == ["cheap", "fast", "unknown"]
    assert decision.candidates[-1].expected_cost_microusd is None
    assert decision.candidates[-1].upper_cost_microusd is None
    assert first(S.LATENCY_OPTIMIZED, unknown, CHEAP) == "unknown"
    assert first(S.COST_OPTIMIZED, unknown) == "unknown"


def test_the_expected_cost_is_that_of_this_job_its_cached_tokens_and_its_failures() -> None:
    long_input, long_output = Price(1, 9), Price(9, 1)
    parts = (endpoint("in", price=long_input), endpoint("out", price=long_output))
    assert chosen(decide(job(strategy="cost", prompt="x" * 9000), *parts))[0] == "in"
    assert chosen(decide(job(strategy="cost", max_output_tokens=None), *parts))[0] == "out"
    for cached_share, cheaper in [(0.0, "plain"), (0.9, "discount")]:
        known = observed(cached_share=cached_share)
        discount = view(endpoint("discount", price=Price(2, 2, cache_read=0.2)), metrics=known)
        plain = view(endpoint("plain", price=Price(1, 2)), metrics=known)
        assert chosen(decide(job(strategy="cost", prompt="x" * 9000), plain, discount))[0] == cheaper
    flaky = view(endpoint("flaky", price=Price(0.9, 1.8)), metrics=observed(error_rate=0.5))
    assert chosen(decide(job(strategy="cost"), flaky, view(endpoint("solid"), metrics=observed())))[0] == "solid"


@pytest.mark.parametrize(
    ("counting", "charged"),
    [
        ({}, (1108, 100)),
        ({"limits_count_cached": False}, (111, 100)),
        ({"limits_count_max_output": False}, (1108, 50)),
    ],
)
def test_limits_are_charged_what_the_provider_counts(counting: dict[str, bool], charged: tuple[int, int]) -> None:
    wanted = replace(job(max_output_tokens=100), input_tokens=1008)
    at = view(endpoint(**counting), metrics=observed(cached_share=0.9))
    best = decide(wanted, at).best
    assert best is not None
    assert (best.input_tokens, best.output_tokens) == charged
    assert best.upper_cost_microusd == 1108 + 2 * 100, "whatever limits count"
    for fits, waits in [(sum(charged), False), (sum(charged) - 1, True)]:
        full = at._replace(load=Load(ready_at=NOW + 9, fits=fits))
        assert (decide(wanted, full).action is Action.WAIT) == waits


def test_free_endpoints_come_before_paid_ones() -> None:
    free = [endpoint(name, price=Price(0, 0)) for name in ("local", "lab")]
    assert set(chosen(decide(job(strategy="cost"), endpoint("paid"), *free))[:2]) == {"local", "lab"}


def shares(strategy: RoutingStrategy, *parts: Any, jobs: int = 3000, in_turn: bool = True) -> Counter[str]:
    rng, fleet = random.Random(11), snapshot(*parts)
    wanted = job(strategy=strategy)
    return Counter(
        rank(wanted, fleet, NOW, rng, decision_number=turn if in_turn else None).candidates[0].endpoint.provider
        for turn in range(jobs)
    )


@pytest.mark.parametrize("strategy", [S.BALANCED, S.COST_OPTIMIZED, S.LATENCY_OPTIMIZED, S.PRIORITY, S.ROUND_ROBIN])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_equal_endpoints_share_the_work_within_a_tenth(strategy: RoutingStrategy, count: int) -> None:
    found = shares(strategy, *(view(endpoint(f"p{i}"), metrics=observed()) for i in range(count)))
    assert all(abs(found[f"p{i}"] * count / 3000 - 1) < 0.1 for i in range(count))


def test_nearly_equal_endpoints_share_the_work_within_a_tenth_too() -> None:
    parts = [view(endpoint(f"p{ms}"), metrics=observed(ms / 1000, 0.0)) for ms in (20, 22, 24)]
    assert all(900 < count < 1100 for count in shares(S.LATENCY_OPTIMIZED, *parts).values())


def test_an_endpoint_that_was_slow_is_tried_again_after_a_silence() -> None:
    def after(silence_s: float) -> str:
        slow = view(endpoint("slow"), metrics=observed(60.0, latency_at=NOW - silence_s))
        return first(S.LATENCY_OPTIMIZED, slow, view(endpoint("other"), metrics=observed(3.0)))

    assert [after(silence_s) for silence_s in (0, 30, 120)] == ["other", "other", "slow"]


def test_the_busier_of_two_equals_gets_less() -> None:
    busy = view(endpoint("busy"), metrics=observed(), load=Load(in_flight=20))
    found = shares(S.LATENCY_OPTIMIZED, busy, view(endpoint("idle"), metrics=observed()))
    assert found["idle"] == 3000


def test_of_two_equals_the_one_that_fails_immediately_gets_less() -> None:
    failing = view(endpoint("failing"), Health(consecutive_failures=3), observed(), Load(in_flight=1))
    assert shares(S.BALANCED, failing, view(endpoint("well"), metrics=observed(), load=Load(in_flight=3))) == {
        "well": 3000
    }


def dead_calls(strategy: RoutingStrategy, jobs_s: float, latency_s: float, *, fails: bool = False) -> int:
    """Calls to one of three equal endpoints once it stops answering, or fails immediately."""
    rng, dead, answers = random.Random(7), 0, list[tuple[float, str]]()
    known = observed(latency_s, 0.0)
    fleet = snapshot(*(view(endpoint(name), metrics=known) for name in "abc"))
    for now in (NOW + number / jobs_s for number in range(int(4 * jobs_s))):
        for answered_at, id in [one for one in sorted(answers) if one[0] <= now]:
            amend(fleet, id, lambda seen, at=answered_at: seen.ended(at, ok=True, counts=True))  # type: ignore[misc]
            answers.remove((answered_at, id))
        best = rank(job(strategy=strategy), fleet, now, rng).best
        assert best is not None
        amend(fleet, best.endpoint.id, lambda seen, at=now: seen.begun(at))  # type: ignore[misc]
        if best.endpoint.provider == "a" and now > NOW + 2:
            dead += 1
            if fails:
                amend(fleet, best.endpoint.id, lambda seen, at=now: seen.ended(at, ok=False, counts=True))  # type: ignore[misc]
        else:
            answers.append((now + latency_s * rng.uniform(0.8, 1.2), best.endpoint.id))
    return dead


@pytest.mark.parametrize("strategy", [S.BALANCED, S.COST_OPTIMIZED, S.LATENCY_OPTIMIZED])
def test_an_equal_that_hangs_gets_hardly_more_than_are_on_their_way_before_one_can_be_missed(
    strategy: RoutingStrategy,
) -> None:
    jobs_s, latency_s = 100.0, 0.3
    assert dead_calls(strategy, jobs_s, latency_s) <= jobs_s / 3 * latency_s + 3


@pytest.mark.parametrize("strategy", [S.BALANCED, S.COST_OPTIMIZED])
def test_an_equal_that_fails_is_none_any_more_before_a_snapshot_tells(strategy: RoutingStrategy) -> None:
    assert dead_calls(strategy, 100.0, 0.3, fails=True) <= 2


def test_one_that_has_never_answered_gets_its_first_calls_and_no_more_while_another_answers() -> None:
    def takes(in_flight: int, answered: ProviderMetrics = ProviderMetrics(), other: EndpointView = FAST) -> list[str]:
        new = view(endpoint("new", price=Price(0.1, 0.1)), metrics=answered, load=Load(in_flight=in_flight))
        return chosen(decide(job(), new, other))

    assert [takes(calls)[0] for calls in (0, 3, 4, 99)] == ["new", "new", "fast", "fast"]
    assert takes(4) == ["fast"]
    assert takes(4, observed()) == ["new", "fast"]
    for no_other in (Health(open_until=NOW + 9), Health(cooldown_until=NOW + 5)):
        assert takes(4, other=FAST._replace(health=no_other)) == ["new"]
    assert takes(99, other=FAST._replace(metrics=ProviderMetrics())) == ["new", "fast"], "none has answered yet"
    new = view(endpoint("new"), load=Load(in_flight=4))
    assert reasons(decide(job(), new, FAST)) == {"new": "unproven"}
    assert chosen(decide(job(), new, FAST, tried=frozenset({"fast/llama"}))) == ["new"]
    assert chosen(decide(job(), new, FAST, tried=frozenset({"fast/llama", "new/llama"}))) == ["new", "fast"]


def test_jobs_that_come_together_spread_over_equals() -> None:
    fleet = snapshot(*(view(endpoint(name), metrics=observed()) for name in "abc"))
    rng, given = random.Random(3), Counter[str]()
    for _ in range(30):
        best = rank(job(), fleet, NOW, rng).best
        assert best is not None
        amend(fleet, best.endpoint.id, lambda seen: seen.begun(NOW))
        given[best.endpoint.provider] += 1
    assert max(given.values()) - min(given.values()) <= 2


def test_round_robin_keeps_the_weights_exactly() -> None:
    parts = [endpoint("three", weight=3.0), endpoint("one", weight=1.0), endpoint("none", weight=0.0)]
    found = shares(S.ROUND_ROBIN, *parts, jobs=400)
    assert abs(found["three"] - 300) <= 2
    assert found["none"] == 0
    assert 250 < shares(S.ROUND_ROBIN, *parts, jobs=400, in_turn=False)["three"] < 350


def test_without_weight_an_endpoint_comes_last_and_all_of_them_take_turns() -> None:
    parts = [endpoint(name, weight=weight) for name, weight in (("a", 1.0), ("drained", 0.0), ("b", 1.0))]
    for turn in range(5):
        rng = random.Random(1)
        order = rank(job(strategy=S.ROUND_ROBIN), snapshot(*parts), NOW, rng, decision_number=turn).candidates
        assert order[-1].endpoint.provider == "drained"
    found = shares(S.ROUND_ROBIN, *(endpoint(name, weight=0.0) for name in "ab"), jobs=400)
    assert abs(found["a"] - 200) <= 2


def test_failover_goes_strictly_in_order() -> None:
    out = Health(open_until=NOW + 9)
    parts = [endpoint("b", priority=2), endpoint("a", priority=1), endpoint("c", priority=2)]
    assert chosen(decide(job(strategy="failover"), *parts)) == ["a", "b", "c"]
    assert chosen(decide(job(strategy="failover"), parts[0], view(parts[1], out), parts[2])) == ["b", "c"]


@pytest.mark.parametrize(
    ("health", "load", "reason", "until_s"),
    [
        (Health(open_until=NOW + 7), Load(), "open", 7),
        (Health(open_until=NOW - 1, probing=True), Load(), "probing", 1),
        (Health(cooldown_until=NOW + 4), Load(), "cooldown", 4),
        (Health(cooldown_until=NOW + 3600), Load(), "cooldown", 3600),
        (Health(), Load(ready_at=NOW + 2), "full", 2),
        (Health(), Load(in_flight=5), "full", 1.0 / 5),
        (Health(disabled="bad key"), Load(), "disabled", 5),
        (Health(isolated="maintenance"), Load(), "isolated", 5),
    ],
)
def test_with_nothing_available_a_job_waits_and_knows_until_when(
    health: Health, load: Load, reason: str, until_s: float
) -> None:
    limited = endpoint(limits=Limits(concurrency=5))
    decision = decide(job(), view(limited, health, load=load))
    assert decision.action is Action.WAIT
    assert reasons(decision) == {"groq": reason}
    spread_s = COOLDOWN_SPREAD_S if reason == "cooldown" else 0.0
    assert NOW + until_s - 1e-6 <= NOW + decision.wait_s <= NOW + until_s + spread_s + 1e-6
    assert chosen(decide(job(), view(limited, health, load=load), endpoint("spare"))) == ["spare"]


def test_a_job_with_time_waits_for_the_cheap_one_and_an_urgent_one_does_not() -> None:
    busy = CHEAP._replace(load=Load(ready_at=NOW + 2))
    patient = decide(job(lane=Lane.BATCH, deadline_s=600), busy, FAST)
    assert patient.action is Action.WAIT
    assert patient.waits_for == "cheap/llama"
    assert patient.wait_s == 2
    assert decide(job(lane=Lane.BATCH, deadline_s=4), busy, FAST).action is Action.GO
    assert decide(job(lane=Lane.INTERACTIVE), busy._replace(load=Load(ready_at=NOW + 29)), FAST).action is Action.GO
    assert decide(job(strategy="priority", lane=Lane.BATCH), busy, FAST).action is Action.GO


@pytest.mark.parametrize("lane", [Lane.STANDARD, Lane.BATCH])
def test_a_job_waits_for_a_cheaper_one_until_that_has_cost_as_much_as_a_dearer_one(lane: Lane) -> None:
    cheap, twice = (
        view(endpoint(name, price=Price(usd, usd)), metrics=observed()) for name, usd in (("a", 1.0), ("b", 2.0))
    )
    busy, worth_s = cheap._replace(load=Load(ready_at=NOW + 2)), 1 / URGENCY[lane]
    patient, tired = (replace(job(lane=lane), waiting_since=NOW - part * worth_s) for part in (0.9, 1.1))
    assert decide(patient, busy, twice).waits_for == "a/llama"
    assert chosen(decide(tired, busy, twice)) == ["b"]
    # What is kept for more urgent lanes, a snapshot doesn't show: admission is offered both.
    assert [bid.endpoint.provider for bid in decide(tired, cheap, twice).bids()] == ["a", "b"]


def test_whatever_a_job_has_waited_what_it_waits_for_is_offered() -> None:
    """What it would give up by waiting on is then its own score, but for the last bit of a number."""
    rng, spare = random.Random(1), view(endpoint("spare", price=Price(2.0, 2.0)), metrics=observed())
    for _ in range(3000):
        busy = CHEAP._replace(load=Load(ready_at=NOW + 3 * rng.random()))
        waiting = replace(job(lane=Lane.BATCH), waiting_since=NOW - rng.uniform(31, 531))
        assert decide(waiting, busy, spare).offering_busy().bids()


def test_what_large_jobs_wait_for_holds_up_no_small_one() -> None:
    full = CHEAP._replace(load=Load(ready_at=NOW + 20, fits=250))
    sizes = [(50, 100), (51, 100), (9000, 100), (22, 128), (23, None)]
    jobs = [replace(job(), input_tokens=given, output_tokens=out, expected_output_tokens=128) for given, out in sizes]
    assert [decide(one, full).action for one in jobs] == ["go", "wait", "wait", "go", "wait"]


def offered(wanted: JobProfile, *parts: Any) -> list[str]:
    return [bid.endpoint.provider for bid in decide(wanted, *parts).bids()]


def test_a_job_with_time_bids_for_the_cheap_one_alone_and_an_urgent_one_for_all() -> None:
    parts = (CHEAP, MIDDLE, FAST, view(endpoint("twin", price=Price(0.1, 0.1)), metrics=observed(3.0)))
    batch = job(lane=Lane.BATCH, deadline_s=600)
    assert set(offered(batch, *parts)) == {"cheap", "twin"}
    assert len(offered(replace(batch, deadline=NOW + 30), *parts)) == 4
    assert len(offered(job(lane=Lane.INTERACTIVE), *parts)) == 4
    assert len(offered(job(lane=Lane.BATCH, deadline_s=600, strategy=S.PRIORITY), *parts)) == 4


def test_an_endpoint_that_fails_often_is_not_called_again_while_a_person_waits() -> None:
    for rate, lane, repeated in [
        (0.3, Lane.INTERACTIVE, False),
        (0.3, Lane.BATCH, True),
        (0.05, Lane.INTERACTIVE, True),
    ]:
        decision = decide(job(lane=lane), view(endpoint(), metrics=observed(error_rate=rate)))
        assert worth_retrying(decision.candidates[0], decision.job.constraints.lane) == repeated


def test_no_endpoint_is_tried_twice_while_another_is_left() -> None:
    parts = [endpoint("a"), endpoint("b")]
    tried = frozenset({"a/llama"})
    assert chosen(decide(job(), *parts, tried=tried)) == ["b"]
    assert reasons(decide(job(), *parts, tried=tried)) == {"a": "tried"}
    b_is_out = view(parts[1], Health(open_until=NOW + 9))
    assert chosen(decide(job(), parts[0], b_is_out, tried=tried)) == ["a"]
    again = replace(job(), failures={"a/llama": 1})
    assert chosen(decide(again, *parts, tried=frozenset({"a/llama", "b/llama"})))[0] == "b"


HALF_OPEN = Health(open_until=NOW - 1)


def test_a_probe_is_a_job_that_no_person_waits_for() -> None:
    down = view(endpoint("down", price=Price(0.1, 0.1)), HALF_OPEN, observed(error_rate=0.9))
    spare = view(endpoint("spare"), metrics=observed())
    decision = decide(job(), down, spare)
    assert chosen(decision) == ["down", "spare"]
    assert decision.ranking.option(0).probe
    urgent = job(lane=Lane.INTERACTIVE)
    assert chosen(decide(urgent, down, spare)) == ["spare"]
    assert chosen(decide(urgent, down)) == ["down"]


def test_a_person_s_job_probes_what_no_other_job_has_come_for() -> None:
    spare = view(endpoint("spare"), metrics=observed())
    cheap, dear = (endpoint("down", price=Price(price, price)) for price in (0.1, 500.0))
    long_since = HALF_OPEN._replace(open_until=NOW - 30)
    asked = decide(job(lane=Lane.INTERACTIVE), view(cheap, long_since, observed(error_rate=0.9)), spare)
    assert chosen(asked) == ["down", "spare"]
    unasked = decide(job(lane=Lane.INTERACTIVE), view(dear, long_since, observed(error_rate=0.9)), spare)
    assert chosen(unasked) == ["spare", "down"], "no worse choice is made for it"


@pytest.mark.parametrize(
    ("observed_s", "age_s", "max_latency_s", "goes"),
    [(1.0, 0, 1.5, True), (1.0, 0, 1.49, False), (1.0, 60, 1.2, True), (None, 0, 0.1, True)],
)
def test_an_observed_latency_excludes_until_it_is_old(
    observed_s: float | None, age_s: float, max_latency_s: float, goes: bool
) -> None:
    known = observed(latency_samples=0, latency_at=0) if observed_s is None else observed(latency_at=NOW - age_s)
    known = known._replace(ttft_s=observed_s)
    decision = decide(job(max_latency_s=max_latency_s), view(endpoint(expected_ttft_s=1.0), metrics=known))
    assert decision.action is (Action.GO if goes else Action.WAIT)
    assert reasons(decision) == ({} if goes else {"groq": "slow"})


def test_an_endpoint_that_was_never_observed_was_not_observed_to_be_slow() -> None:
    """A dry run has no time, so none that is long ago."""
    parts = snapshot(endpoint(expected_ttft_s=None), at=0.0)
    assert rank(job(max_latency_s=0.001), parts, 0.0, random.Random(0)).action is Action.GO


def hedged(wanted: JobProfile, *parts: EndpointView) -> tuple[float, list[str]] | None:
    decision = decide(wanted, *parts)
    found = decision.hedge(decision.candidates[0])
    return found and (found.after_s, [candidate.endpoint.provider for candidate in found.candidates])


def test_a_second_call_is_for_urgent_jobs_with_another_endpoint_that_is_well_and_in_time() -> None:
    parts = (FAST, MIDDLE)
    urgent = job(lane=Lane.INTERACTIVE, strategy="latency")
    assert hedged(urgent, *parts) == (0.8, ["middle"])
    after_s, others = hedged(job(lane=Lane.INTERACTIVE), CHEAP, MIDDLE) or (0, [])
    assert after_s == pytest.approx(3.5 * 2.718 ** (1.645 * 0.3), rel=0.01)
    assert others == ["middle"]
    assert hedged(job(strategy="latency"), *parts) is None
    assert hedged(urgent, FAST) is None
    assert hedged(job(lane=Lane.INTERACTIVE, strategy="latency", allow_fallback=False), *parts) is None
    assert hedged(replace(urgent, deadline=NOW + 2.2), *parts) is None
    assert hedged(replace(urgent, deadline=NOW + 2.4), *parts) == (0.8, ["middle"])
    assert hedged(urgent, FAST, MIDDLE._replace(health=HALF_OPEN)) is None


def test_two_simultaneous_calls_stay_below_the_jobs_ceiling_together() -> None:
    # At most 1,075 micro-dollars there, and 215 here.
    enough, less = (job(lane=Lane.INTERACTIVE, strategy="latency", max_cost_usd=(1075 + n) / 1e6) for n in (215, 214))
    assert hedged(enough, FAST, MIDDLE) == (0.8, ["middle"])
    assert hedged(less, FAST, MIDDLE) is None


def test_a_candidate_carries_what_admission_and_the_call_need() -> None:
    wordy = MIDDLE._replace(endpoint=replace(MIDDLE.endpoint, max_output_tokens=131_072))
    best = decide(job(max_output_tokens=None), wordy).candidates[0]
    assert (best.output_tokens, best.upper_cost_microusd) == (256, 115 + 131_072), "as is usual, and at most"
    best = decide(job(), MIDDLE).candidates[0]
    assert (best.input_tokens, best.output_tokens, best.upper_cost_microusd) == (115, 100, 215)
    assert best.expected_cost_microusd == 61
    assert best.latency_s == pytest.approx(1.5)
    assert best.overdue_s == pytest.approx(1.2 * 1.5 * 2.718 ** (2 * 0.3), rel=0.01)
    assert best.timeout_s == pytest.approx(4 * 1.5 * 2.718 ** (2.326 * 0.3), rel=0.01)
    own = JobProfile.of(request().model_copy(update={"timeout_s": 3.0}))
    assert decide(own, MIDDLE).candidates[0].timeout_s == 3.0


UNTOLD = replace(MIDDLE.endpoint, expected_ttft_s=None, expected_s_per_token=None)


def untold(samples: int) -> EndpointView:
    return MIDDLE._replace(endpoint=UNTOLD, metrics=ProviderMetrics(1.0, 0.005, 0.3, NOW, samples))


@pytest.mark.parametrize(
    ("parts", "overdue_s", "timeout_s"),
    [
        ((untold(0), CHEAP), 121, 300),
        ((untold(19), CHEAP), 121, 300),
        ((untold(20), CHEAP), 3, 10),
        ((untold(20),), 121, 300),  # the job can go nowhere else: what is late may only be long
        ((MIDDLE._replace(metrics=ProviderMetrics()),), 5, 19),  # an operator has configured it
    ],
)
def test_a_call_is_late_sooner_where_its_endpoint_is_known_and_another_could_be_asked(
    parts: tuple[EndpointView, ...], overdue_s: int, timeout_s: int
) -> None:
    found = next(c for c in decide(job(), *parts).candidates if c.endpoint.id == "middle/llama")
    assert (round(found.overdue_s), round(found.timeout_s)) == (overdue_s, timeout_s)


def test_an_endpoint_that_was_slow_is_tried_again_but_its_calls_are_not_late_sooner() -> None:
    slow = MIDDLE._replace(metrics=ProviderMetrics(30.0, 0.0, 0.3, NOW - 3600, 50))
    found = decide(job(), slow).candidates[0]
    assert found.latency_s < 2
    assert found.overdue_s > 30


def test_an_endpoint_that_is_ejected_again_and_again_has_longer_for_its_probe() -> None:
    down = [HALF_OPEN._replace(ejections=ejections) for ejections in (1, 3, 4, 5, 6, 9)]
    seen = [decide(job(), MIDDLE._replace(health=health)).candidates[0] for health in down]
    assert [round(one.timeout_s) for one in seen] == [6, 6, 6, 12, 24, 60]
    unknown = decide(job(), untold(0)._replace(health=HALF_OPEN)).candidates[0]
    assert unknown.timeout_s == 60


def test_a_record_is_json_and_replays_to_the_same_choice_under_its_strategy() -> None:
    rng = random.Random(2)
    records = []
    for strategy in S:
        for _ in range(20):
            at = EndpointView(
                endpoint(f"p{rng.random()}", limits=Limits(concurrency=9)), metrics=observed(rng.random())
            )
            twins = [
                view(
                    endpoint(f"twin{n}", price=Price(0.1, 0.1)),
                    Health(consecutive_failures=rng.randrange(3)),
                    observed(3.0, latency_at=NOW - rng.random()),
                    Load(in_flight=rng.randrange(9), oldest_started_at=NOW - 6 * rng.random()),
                )
                for n in range(2)
            ]
            fleet = snapshot(CHEAP, FAST, MIDDLE, at, *twins, view(endpoint("x"), load=Load(ready_at=NOW + 1)))
            records.append(
                to_json_dict(rank(job(strategy=strategy), fleet, NOW, rng, decision_number=rng.choice([None, 1, 2])))
            )
    records = json.loads(json.dumps(records))
    repeated, cheap, fast = (list(choices(records, s)) for s in (None, S.COST_OPTIMIZED, S.LATENCY_OPTIMIZED))
    assert (len(repeated), changed(records)) == (120, [])
    costs = [sum(choice.cost_microusd for choice in made) for made in (cheap, repeated, fast)]
    times = [sum(choice.time_s for choice in made) for made in (fast, repeated, cheap)]
    assert (sorted(costs), sorted(times)) == (costs, times)


def test_a_replay_heeds_where_the_job_had_failed() -> None:
    dearer = endpoint("dearer", price=Price(1.5, 3.0), account="2")
    failed = replace(job(), failures={"groq/llama": 3})
    records = [to_json_dict(decide(wanted, endpoint("groq"), dearer)) for wanted in (job(), failed)]
    assert [choice.endpoint_id for choice in choices(records)] == ["groq/llama", "dearer/llama#2"]
    assert changed(records) == []


def test_a_record_says_why_and_holds_no_prompt() -> None:
    wanted = job(prompt="the secret plan", model="llama", deadline_s=30)
    out = view(endpoint("out"), Health(open_until=NOW + 9, ejection_reason="4 failures in a row"))
    record = to_json_dict(decide(wanted, MIDDLE, out, endpoint("other", model="gpt")))
    assert record["chosen"] == "middle/llama"
    assert excluded(record) == [
        ("model", "doesn't serve llama", ["other/gpt"], 0),
        ("open", "ejected: 4 failures in a row", ["out/llama"], 0),
    ]
    assert candidates(record)[0].id == "middle/llama"
    assert candidates(record)[0].cost_microusd == 62
    assert "secret" not in json.dumps(record)


def test_a_record_does_not_grow_with_the_fleet() -> None:
    fleet = [endpoint(f"p{n}", model="llama" if n % 2 else "gpt") for n in range(400)]
    record = to_json_dict(decide(job(model="llama"), *fleet))
    assert excluded(record) == [("model", "doesn't serve llama", ["p0/gpt", "p2/gpt", "p4/gpt"], 197)]
    assert candidates(record)[0].id == record["chosen"]
    assert len(json.dumps(record)) < 2500
    busy = CHEAP._replace(load=Load(ready_at=NOW + 1))
    waiting = to_json_dict(decide(job(lane=Lane.BATCH), busy, *fleet))
    assert waiting["waits_for"] == candidates(waiting)[-1].id == "cheap/llama"


@pytest.mark.parametrize("wait_s", [0.4, 40])
def test_one_whose_only_endpoint_was_busy_a_moment_ago_may_ask_there_all_the_same(wait_s: float) -> None:
    busy = view(endpoint("busy"), load=Load(ready_at=NOW + wait_s))
    decision = decide(job(), busy)
    assert (decision.action, decision.bids()) == (Action.WAIT, ())
    asking = decision.offering_busy()
    assert asking.action is Action.GO
    assert [bid.endpoint.provider for bid in asking.bids()] == ["busy"]


def test_what_an_operator_says_to_be_too_slow_is_called_only_if_nothing_else_can_be() -> None:
    slow = endpoint("slow", expected_ttft_s=30.0, expected_s_per_token=0.01, price=Price(0.1, 0.1))
    fast = endpoint("fast", expected_ttft_s=0.1)
    decision = decide(job(max_latency_s=5), slow, fast)
    assert (chosen(decision), reasons(decision)) == (["fast"], {"slow": "slow"})
    assert chosen(decide(job(max_latency_s=5), slow)) == ["slow"]


def test_one_that_is_woken_asks_first_where_it_would_rather_wait_than_pay_more() -> None:
    busy, dear = view(endpoint("busy"), load=Load(ready_at=NOW + 0.4)), endpoint("dear", price=Price(500.0, 500.0))
    decision = decide(job(), busy, dear)
    assert (decision.action, decision.waits_for) == (Action.WAIT, "busy/llama")
    assert [bid.endpoint.provider for bid in decision.offering_busy().bids()] == ["busy"]


def test_a_ceiling_heeds_what_storing_a_prompt_costs_and_the_price_of_long_ones() -> None:
    wanted = job(prompt="x" * 2000, max_output_tokens=1, max_cost_usd=0.0015)
    storing = endpoint("storing", price=Price(1.0, 1.0, cache_write=2.0))
    long = endpoint("long", price=Price(1.0, 1.0, longer=(500, Price(2.0, 2.0))))
    decision = decide(wanted, endpoint("fits", price=Price(1.0, 1.0)), storing, long)
    assert chosen(decision) == ["fits"]
    assert reasons(decision) == {"storing": "cost", "long": "cost"}


def test_one_to_be_probed_where_the_job_failed_comes_after_one_where_it_did_not() -> None:
    out = Health(open_until=NOW - 1, ejections=1)
    views = view(endpoint("failed", price=Price(0.0, 0.0)), out), view(endpoint("other"), out)
    decision = decide(job(lane=Lane.INTERACTIVE), *views, tried=frozenset({"failed/llama"}))
    assert chosen(decision) == ["other"]
    assert reasons(decision) == {"failed": "tried"}


def test_a_turn_that_goes_to_one_held_back_is_repeated_from_its_record() -> None:
    unproven, other = view(endpoint("unproven"), load=Load(in_flight=9)), endpoint("other", weight=3.0)
    records = [
        to_json_dict(decide(job(strategy=S.ROUND_ROBIN), unproven, other, decision_number=turn)) for turn in range(20)
    ]
    assert {record["chosen"] for record in records} == {"unproven/llama", "other/llama"}
    assert changed(records) == []


def test_even_the_shortest_wait_is_one_in_a_record() -> None:
    busy = view(endpoint("busy", priority=1), load=Load(ready_at=NOW + 1e-5))
    record = to_json_dict(decide(job(strategy=S.FAILOVER), busy, endpoint("free", priority=2)))
    assert record["chosen"] == "free/llama"
    assert changed([record]) == []


def test_bids_that_leave_out_an_endpoint_that_is_back_before_long_are_not_all_there_is() -> None:
    back_soon = view(endpoint("soon"), Health(cooldown_until=NOW + 600, cooldown_reason="asked to wait"))
    alone, both = decide(job(), CHEAP), decide(job(), CHEAP, back_soon)
    assert not alone.has_more_than(alone.bids())
    assert both.has_more_than(both.bids())
