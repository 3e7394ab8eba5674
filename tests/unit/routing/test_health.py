"""When an endpoint is ejected, for how long, and how it comes back."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from tests.unit.routing.fleets import NOW, WELL, endpoint, observed, view

from turnout_workers.routing.failure import Billed, Failure, FailureKind
from turnout_workers.routing.fleet import Circuit, Health, Load
from turnout_workers.routing.health import (
    EJECTION_S,
    MAX_EJECTION_S,
    Counters,
    Eject,
    Recover,
    after_report,
    after_watch,
    circuit,
    ejection_s,
    ramp_slots,
)

OPEN = Health(open_until=NOW + 5, ejections=1)
HALF_OPEN = Health(open_until=NOW - 1, ejections=1)
RAMPING = Health(recovered_at=NOW - 4)
ISOLATED = Health(isolated="maintenance")
DISABLED = Health(disabled="bad key")


NONE_COUNTED = Counters(NOW, 0, 0, error_rate=0.0, error_weight=0.0, probe=False)


def after(health: Health = WELL, kind: FailureKind | None = FailureKind.SERVER_ERROR, **how: Any) -> Any:
    counts, billed = how.pop("counts_for_health", True), how.pop("billed", Billed.MAYBE)
    failure = Failure(kind, "how it went", billed) if kind else None
    counters = replace(NONE_COUNTED, **how)
    return after_report(health, counters, failure, random.Random(3), counts_for_health=counts)


@pytest.mark.parametrize(
    ("health", "state"),
    [
        (Health(), Circuit.CLOSED),
        (OPEN, Circuit.OPEN),
        (HALF_OPEN, Circuit.HALF_OPEN),
        (Health(open_until=NOW), Circuit.HALF_OPEN),
        (RAMPING, Circuit.RAMPING),
        (Health(recovered_at=NOW), Circuit.RAMPING),
        (Health(recovered_at=NOW - 8), Circuit.CLOSED),
        (Health(open_until=NOW - 9, recovered_at=NOW - 8), Circuit.CLOSED),
        (ISOLATED, Circuit.ISOLATED),
        (DISABLED, Circuit.DISABLED),
        (Health(cooldown_until=NOW + 60), Circuit.CLOSED),
    ],
)
def test_the_circuit_at_a_time(health: Health, state: Circuit) -> None:
    assert circuit(health, NOW) is state


@pytest.mark.parametrize(
    ("health", "slots"),
    [
        (Health(recovered_at=NOW), 4),
        (RAMPING, 16),
        (Health(recovered_at=NOW, proven=20), 24),
    ],
)
def test_a_ramp_grows_with_time_and_with_answers(health: Health, slots: int) -> None:
    assert ramp_slots(health, NOW) == slots


@pytest.mark.parametrize(
    ("how", "follows"),
    [
        ({"consecutive_failures": 3}, None),
        ({"consecutive_failures": 4}, Eject),
        ({"consecutive_failures": 2, "billed": Billed.YES}, Eject),
        ({"consecutive_failures": 3, "billed": Billed.YES, "kind": FailureKind.EMPTY}, None),
        ({"consecutive_failures": 4, "billed": Billed.YES, "kind": FailureKind.EMPTY}, Eject),
        ({"consecutive_failures": 2, "kind": FailureKind.UNAVAILABLE}, Eject),
        ({"consecutive_failures": 1, "kind": FailureKind.UNAVAILABLE}, None),
        ({"consecutive_failures": 1, "billed": Billed.YES}, None),
        ({"consecutive_failures": 4, "counts_for_health": False}, None),
        ({"failures_as_begun": 4}, None),
        ({"failures_as_begun": 5}, Eject),
        ({"failures_as_begun": 3, "kind": FailureKind.UNAVAILABLE}, Eject),
        ({"failures_as_begun": 2, "billed": Billed.YES}, None),
        ({"error_rate": 0.61, "error_weight": 6.1}, Eject),
        ({"error_rate": 0.60, "error_weight": 60}, None),
        ({"error_rate": 1.0, "error_weight": 6.0}, None),
        ({"error_rate": 0.9, "error_weight": 60, "kind": None}, None),
        ({"probe": True}, Eject),
        ({"probe": True, "kind": None}, Recover),
        ({"probe": True, "kind": FailureKind.RATE_LIMITED, "counts_for_health": False}, Recover),
        ({"probe": True, "kind": FailureKind.CANCELLED, "counts_for_health": False}, None),
        ({"probe": True, "kind": FailureKind.TIMED_OUT, "counts_for_health": False}, None),
        ({"consecutive_failures": 9, "health": OPEN}, None),
        ({"consecutive_failures": 9, "health": HALF_OPEN}, None),
        ({"consecutive_failures": 9, "health": RAMPING}, Eject),
        ({"consecutive_failures": 9, "health": ISOLATED}, None),
        ({"consecutive_failures": 9, "health": DISABLED}, None),
    ],
)
def test_what_follows_from_a_report(how: dict[str, Any], follows: type | None) -> None:
    found = after(**how)
    assert (found and type(found)) is follows


@pytest.mark.parametrize(
    "how", [{"probe": True}, {"consecutive_failures": 4}, {"error_rate": 0.7, "error_weight": 7.0}]
)
def test_an_ejection_says_why_the_endpoint_was_not_reached_but_quotes_no_provider(
    how: dict[str, Any],
) -> None:
    assert after(kind=FailureKind.UNAVAILABLE, **how).reason.endswith(": unavailable: how it went")
    assert "how it went" not in after(kind=FailureKind.SERVER_ERROR, **how).reason


def test_ejections_double_up_to_the_cap_and_start_over_after_a_healthy_minute() -> None:
    rng = random.Random(5)
    for before, full_s in enumerate([2, 4, 8, MAX_EJECTION_S, MAX_EJECTION_S]):
        times = [ejection_s(before, rng) for _ in range(200)]
        assert full_s * 0.85 <= min(times) < full_s < max(times) <= full_s * 1.15
    again = after(Health(ejections=3, recovered_at=NOW - 59), consecutive_failures=4)
    afresh = after(Health(ejections=3, recovered_at=NOW - 60), consecutive_failures=4)
    assert again.open_s > 8
    assert afresh.open_s < 2.4


def test_the_base_of_the_ejection_is_the_callers_choice() -> None:
    assert 51 <= ejection_s(0, random.Random(), base_s=60) <= 69
    assert 51 <= ejection_s(5, random.Random(), base_s=60) <= 69


@pytest.mark.parametrize(
    ("load", "overdue", "silent_s", "ejected"),
    [
        (Load(in_flight=4), 2, 0.1, True),
        (Load(in_flight=9), 2, 0.1, False),
        (Load(in_flight=9), 2, 1.5, True),
        (Load(in_flight=3), 1, 9.0, False),
        (Load(in_flight=1), 1, 19.0, False),
        (Load(in_flight=1), 1, 20.0, True),
        (Load(in_flight=0), 0, 90.0, False),
    ],
)
def test_hanging_calls_eject_before_they_time_out(load: Load, overdue: int, silent_s: float, ejected: bool) -> None:
    seen = view(endpoint(), metrics=observed(latency_at=NOW - silent_s), load=load)
    ejection = after_watch(seen, overdue, NOW, random.Random())
    assert (ejection is not None) == ejected
    assert ejection is None or ejection.open_s > 1.5 * EJECTION_S, "twice as long: its probe may hang as well"
    assert after_watch(seen._replace(health=OPEN), overdue, NOW, random.Random()) is None
