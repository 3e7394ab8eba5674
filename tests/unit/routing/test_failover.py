"""What follows from every kind of failure: for the job, and for the endpoint."""

from __future__ import annotations

import random
from typing import Any

import pytest

from turnout_workers.routing.allowance import Allowance
from turnout_workers.routing.failover import (
    COOLDOWN_S,
    MAX_ATTEMPTS,
    MAX_CALLS,
    MAX_JITTER_S,
    MAX_MODELS,
    MAX_REST_S,
    RULES,
    History,
    Next,
    attempts_spent,
    backoff_s,
    judge,
)
from turnout_workers.routing.failure import Failure, FailureKind, Scope

K = FailureKind
#       kind                  first    again    none left   cooldown  what becomes of the endpoint
TABLE: list[tuple[FailureKind, str, str, str, float, set[str]]] = [
    (K.RATE_LIMITED, "fail_over", "fail_over", "defer", 5, set()),
    (K.QUOTA_EXHAUSTED, "fail_over", "fail_over", "defer", 3600, set()),
    (K.OVERLOADED, "fail_over", "fail_over", "defer", 0, {"counts"}),
    (K.UNAVAILABLE, "fail_over", "fail_over", "defer", 0, {"counts"}),
    (K.TIMED_OUT, "fail_over", "fail_over", "defer", 0, {"counts", "spends"}),
    (K.INTERRUPTED, "fail_over", "fail_over", "defer", 0, {"counts", "spends"}),
    (K.SERVER_ERROR, "retry", "fail_over", "defer", 0, {"counts", "spends"}),
    (K.MALFORMED, "fail_over", "fail_over", "defer", 0, {"counts", "spends"}),
    (K.EMPTY, "fail_over", "fail_over", "defer", 0, {"counts", "spends"}),
    (K.OFF_SCHEMA, "retry", "fail_over", "defer", 0, {"spends"}),
    (K.UNAUTHORIZED, "fail_over", "fail_over", "defer", 0, {"disables"}),
    (K.BILLING, "fail_over", "fail_over", "defer", 0, {"disables"}),
    (K.UNAFFORDABLE, "fail_over", "fail_over", "defer", 0, set()),
    (K.FORBIDDEN, "fail_over", "fail_over", "defer", 0, {"disables"}),
    (K.MODEL_NOT_FOUND, "fail_over", "fail_over", "defer", 0, {"disables"}),
    (K.CONTEXT_LENGTH, "fail_over", "fail_over", "give_up", 0, {"unsuited"}),
    (K.CONTENT_FILTERED, "fail_over", "fail_over", "give_up", 0, {"unsuited"}),
    (K.UNSUPPORTED, "fail_over", "fail_over", "give_up", 0, {"unsuited"}),
    (K.CONFLICT, "retry", "fail_over", "defer", 0, {"spends"}),
    (K.INVALID_REQUEST, "fail_over", "fail_over", "give_up", 0, {"unsuited"}),
    (K.LOCAL, "retry", "retry", "defer", 0, set()),
    (K.CANCELLED, "defer", "defer", "defer", 0, set()),
]


def verdict(kind: FailureKind, retry_after_s: float | None = None, **how: Any) -> Any:
    history = History(**{name: how.pop(name) for name in History._fields if name in how})
    return judge(Failure(kind, "no", retry_after_s=retry_after_s), random.Random(1), history, **how)


@pytest.mark.parametrize(("kind", "first", "again", "none_left", "cooldown_s", "effects"), TABLE)
def test_the_verdict_on_every_kind(
    kind: FailureKind, first: str, again: str, none_left: str, cooldown_s: float, effects: set[str]
) -> None:
    found = verdict(kind)
    assert found.action == first
    assert verdict(kind, retries_here=1).action == again
    assert verdict(kind, retries_here=2, has_untried=False).action == none_left
    assert cooldown_s <= found.cooldown_s <= cooldown_s * 1.1
    flags = {
        "counts": found.counts_for_health,
        "spends": found.spends_attempt,
        "disables": found.disable,
        "unsuited": found.unsuited,
    }
    assert {name for name, is_set in flags.items() if is_set} == effects


def test_every_kind_has_its_row_and_its_rule() -> None:
    assert {row[0] for row in TABLE} == set(FailureKind) == set(RULES)


def test_a_success_finishes() -> None:
    found = judge(None, random.Random())
    assert (found.action, found.counts_for_health) == (Next.FINISH, True)


@pytest.mark.parametrize(("retry_after_s", "action"), [(0.5, "retry"), (2.0, "retry"), (2.1, "fail_over")])
def test_a_short_retry_after_is_waited_for_in_place(retry_after_s: float, action: str) -> None:
    found = verdict(K.RATE_LIMITED, retry_after_s)
    assert found.action == action
    assert found.cooldown_s >= retry_after_s
    if action == "retry":
        assert found.delay_s >= retry_after_s
        assert verdict(K.RATE_LIMITED, retry_after_s, retries_here=1).action is Next.FAIL_OVER
        assert verdict(K.OVERLOADED, retry_after_s).action is Next.FAIL_OVER


@pytest.mark.parametrize("kind", [kind for kind, rule in RULES.items() if rule.retries and kind is not K.LOCAL])
def test_no_endpoint_is_tried_again_in_place_that_asks_for_a_longer_wait(kind: FailureKind) -> None:
    assert verdict(kind, 2.0).action is Next.RETRY
    elsewhere = verdict(kind, 20.0)
    assert (elsewhere.action, elsewhere.delay_s) == (Next.FAIL_OVER, 0)
    assert elsewhere.cooldown_s >= 20
    only = verdict(kind, 20.0, allow_fallback=False)
    assert verdict(kind, 20.0, allow_fallback=False, same_failures=1).action is Next.GIVE_UP, (
        "once, however long it waits"
    )
    assert (only.action, verdict(kind, 20.0, allow_fallback=False, retries_here=1).action) == ("defer", "give_up")
    assert only.delay_s >= 20


@pytest.mark.parametrize("kind", [K.RATE_LIMITED, K.OVERLOADED, K.UNAVAILABLE, K.SERVER_ERROR, K.TIMED_OUT])
def test_retry_after_is_a_floor_for_the_cooldown(kind: FailureKind) -> None:
    assert 40 <= verdict(kind, 40.0).cooldown_s <= 44
    assert verdict(kind, 40.0, has_untried=False, retries_here=1).delay_s >= 40


def test_a_rate_limit_rests_as_long_as_asked_and_for_some_time_if_none_is_named() -> None:
    assert 3 <= verdict(K.RATE_LIMITED, 3.0).cooldown_s < 5
    assert verdict(K.RATE_LIMITED, 0.0).cooldown_s >= 5


def test_a_daily_quota_cools_down_for_an_hour_at_least() -> None:
    assert verdict(K.QUOTA_EXHAUSTED, 60.0).cooldown_s >= 3600
    assert verdict(K.QUOTA_EXHAUSTED, 7200.0).cooldown_s >= 7200


def test_the_retry_allowance_bounds_retries_but_not_failover() -> None:
    assert verdict(K.SERVER_ERROR, may_retry=False).action is Next.FAIL_OVER
    assert judge(Failure(K.SERVER_ERROR, "no use", repeatable=False), random.Random()).action is Next.FAIL_OVER
    allowance = Allowance(0.25, reserve=2)
    assert [allowance.withdraw() for _ in range(3)] == [True, True, False]
    for _ in range(4):
        allowance.deposit()
    assert allowance.withdraw()
    assert not allowance.available


@pytest.mark.parametrize("kind", list(FailureKind))
def test_without_fallback_no_job_goes_elsewhere(kind: FailureKind) -> None:
    assert verdict(kind, allow_fallback=False, retries_here=9).action in (Next.DEFER, Next.GIVE_UP)
    waits = kind in (K.RATE_LIMITED, K.QUOTA_EXHAUSTED, K.UNAFFORDABLE, K.LOCAL, K.CANCELLED)
    assert (verdict(kind, allow_fallback=False, retries_here=9).action is Next.DEFER) == waits


@pytest.mark.parametrize("kind", list(FailureKind))
def test_a_job_ends_after_its_last_attempt_and_waiting_is_none(kind: FailureKind) -> None:
    last = verdict(kind, attempt=MAX_ATTEMPTS)
    assert (last.action is Next.GIVE_UP) == last.spends_attempt


def test_rate_limits_and_refused_connections_are_none_of_a_jobs_calls() -> None:
    assert attempts_spent(["rate_limited", "unavailable", "overloaded", None, "of another release"]) == 0
    assert attempts_spent(["server_error", "rate_limited", "timed_out"]) == 2


def test_a_job_that_is_refused_by_limits_again_and_again_asks_ever_more_seldom() -> None:
    def refused(same_failures: int, **more: Any) -> Any:
        return verdict(K.RATE_LIMITED, same_failures=same_failures, has_untried=False, **more)

    for more in ({}, {"allow_fallback": False}):
        rests_s = [refused(same_failures, **more).delay_s for same_failures in (0, 4, 10, 1000)]
        assert rests_s == [pytest.approx(s, rel=0.5) for s in (COOLDOWN_S, COOLDOWN_S, 16, MAX_REST_S)]
    assert refused(1000).cooldown_s == pytest.approx(COOLDOWN_S, rel=0.2), "the endpoint itself is not shunned for it"


def test_a_job_that_is_too_dear_for_the_credit_left_takes_the_endpoint_from_nobody() -> None:
    rests = [verdict(K.UNAFFORDABLE, same_failures=same, has_untried=False) for same in (10, 1000)]
    assert [rest.delay_s for rest in rests] == [pytest.approx(s, rel=0.5) for s in (16, MAX_REST_S)]
    assert {rest.cooldown_s for rest in rests} == {0}


def test_a_job_whose_worker_is_at_its_own_limits_is_left_to_others_for_longer_each_time() -> None:
    rests_s = [
        verdict(K.LOCAL, same_failures=same_failures, may_retry=False).delay_s for same_failures in (0, 5, 10, 1000)
    ]
    assert rests_s == [pytest.approx(s, rel=0.5) for s in (0.4, 0.4, 16, MAX_REST_S)]


def test_a_probe_that_fails_spends_no_attempt_and_leaves_the_next_ones_to_other_jobs() -> None:
    def probed(calls: int) -> Any:
        return verdict(K.SERVER_ERROR, probe=True, attempt=MAX_ATTEMPTS, calls=calls, retries_here=1, has_untried=False)

    assert not probed(1).spends_attempt
    assert [probed(calls).action for calls in (1, MAX_CALLS - 1, MAX_CALLS)] == ["defer", "defer", "give_up"]
    rests_s = [probed(calls).delay_s for calls in (4, 10, 20)]
    assert rests_s == [0, pytest.approx(16, rel=0.5), pytest.approx(MAX_REST_S, rel=0.5)]
    assert sum(probed(calls).delay_s for calls in range(1, MAX_CALLS)) > 3600


@pytest.mark.parametrize("kind", list(FailureKind))
def test_a_request_is_wrong_when_two_providers_say_so(kind: FailureKind) -> None:
    assert verdict(kind).action is not Next.GIVE_UP
    assert (verdict(kind, same_failures=1, other_providers=1).action is Next.GIVE_UP) == (kind is K.INVALID_REQUEST)


def test_two_models_of_one_provider_are_one_witness() -> None:
    assert verdict(K.INVALID_REQUEST, same_failures=1, other_providers=0).action is Next.FAIL_OVER


def test_a_provider_of_many_models_is_not_asked_for_all_of_them_about_a_wrong_request() -> None:
    assert verdict(K.INVALID_REQUEST, same_failures=MAX_MODELS - 2).action is Next.FAIL_OVER
    assert verdict(K.INVALID_REQUEST, same_failures=MAX_MODELS - 1).action is Next.GIVE_UP


def test_a_job_that_makes_providers_refuse_their_keys_ends_but_not_before_it_has_passed_all_models() -> None:
    assert [verdict(K.FORBIDDEN, same_failures=same_failures).action for same_failures in (14, 15)] == [
        "fail_over",
        "give_up",
    ]
    assert verdict(K.FORBIDDEN, attempt=MAX_ATTEMPTS, has_untried=False).action is Next.DEFER


def test_a_model_that_has_nothing_to_say_is_asked_three_times() -> None:
    assert verdict(K.EMPTY, same_failures=1).action is Next.FAIL_OVER
    assert verdict(K.EMPTY, same_failures=2).action is Next.GIVE_UP


def test_the_first_failover_is_immediate_and_later_ones_back_off() -> None:
    assert verdict(K.TIMED_OUT, attempt=1).delay_s == 0
    rng = random.Random(7)
    for failures, full_s in [(1, 0.5), (2, 1.0), (3, 2.0), (5, 8.0), (50, 8.0)]:
        assert full_s / 2 <= backoff_s(failures, rng) <= full_s


def test_an_account_wide_failure_takes_out_the_account() -> None:
    found = judge(Failure(K.UNAUTHORIZED, "bad key", scope=Scope.ACCOUNT), random.Random())
    assert found.disable
    assert found.scope is Scope.ACCOUNT


def test_a_long_cooldown_ends_soon_after_the_time_that_was_named() -> None:
    assert 80_000 < verdict(K.RATE_LIMITED, 80_000).cooldown_s <= 80_000 + MAX_JITTER_S
