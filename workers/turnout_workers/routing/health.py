"""The circuit of an endpoint: closed → open → half open → ramping → closed. Pure policy over shared counts.

Stores only count. After each report the worker asks `after_report` what follows and passes it to the store, which
applies it atomically, with `until = max(old, new)`: if two workers decide the same thing at the same time, it happens
once. A 429 is a cooldown and says nothing about health. An endpoint is judged on its own numbers, whatever the size of
the fleet; a lone one is ejected too, and its jobs wait.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from turnout_workers.routing.failure import Billed, Failure, FailureKind
from turnout_workers.routing.fleet import Circuit, EndpointView, Health

CONSECUTIVE_FAILURES = 4
"""Failures in a row, over the whole fleet, that open a circuit, in the order in which calls ended. In the order in
which they began, which shows that an endpoint broke though it still answers older calls, it takes one more, because
counting twice finds bad luck more often."""
CONSECUTIVE_UNREACHED = 2
"""The same if the endpoint isn't reached at all: there are few successes then, and a needless ejection costs 2 s."""
CONSECUTIVE_WHEN_BILLED = 2
"""The same if a failure costs money."""
ERROR_RATE = 0.6
"""Error rate above which a circuit opens."""
ERROR_WEIGHT = 6.0
"""Recent outcomes that it takes to believe the error rate."""
ERROR_MEMORY_S = 20.0
"""Time constant with which stores forget outcomes."""
EJECTION_S = 2.0
"""The first ejection. Each further one in a row is twice as long."""
MAX_EJECTION_S = 10.0
"""A longer ejection would only delay the return."""
JITTER = 0.15
WELL_S = 60.0
"""Time without an ejection after which the next one counts as the first again."""
RAMP_S = 8.0
"""Time after a recovery during which `ramp_slots` bounds the calls in flight."""
RAMP_EXCESS = 1.2
"""Most calls in a second of a ramp, as a multiple of the rate limit per second."""
HANGING_CALLS = 2
HANGING_SILENCE_S = 1.5
EJECTIONS_OF_A_HANG = 2
"""A first ejection for hanging counts as this many in a row: if the probe hangs too, that takes seconds to see."""
LONE_HANG_S = 20.0
"""Age at which a single overdue call counts as a hang if there is no other in flight to compare it with."""


@dataclass(frozen=True, slots=True)
class Counters:
    """An endpoint's outcomes over the whole fleet, as a store counts them after each report."""

    at: float
    """When they were read, on the store's clock."""
    consecutive_failures: int
    """In the order in which calls ended."""
    failures_as_begun: int
    """In the order in which calls began: the success of a call that began before these doesn't end the run."""
    error_rate: float
    error_weight: float
    """Effective number of outcomes behind `error_rate`."""
    probe: bool
    """The reported call was the probe."""


@dataclass(frozen=True, slots=True)
class Eject:
    """Eject the endpoint."""

    open_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class Recover:
    """Close its circuit: the probe was answered."""


PROVES_NOTHING = frozenset({FailureKind.CANCELLED, FailureKind.LOCAL})
"""Calls that we ended ourselves prove nothing, not even that a probe succeeded."""


def circuit(health: Health, now: float) -> Circuit:
    """The state of the circuit at `now`. A cooldown isn't part of it."""
    if health.isolated is not None:
        return Circuit.ISOLATED
    if health.disabled is not None:
        return Circuit.DISABLED
    if health.open_until > now:
        return Circuit.OPEN
    if health.recovered_at < health.open_until:
        return Circuit.HALF_OPEN
    if health.recovered_at > 0 and now - health.recovered_at < RAMP_S:
        return Circuit.RAMPING
    return Circuit.CLOSED


def ramp_slots(health: Health, now: float) -> int:
    """The most calls in flight while the endpoint ramps, so that a fleet's backlog doesn't hit a server that just woke.

    As in TCP's slow start, each answer makes room for two calls; at first there is room for as many as would show that
    it is down again. If answers are slow, time makes room too: twice as much each second.
    """
    return max(1 << math.floor(max(0.0, now - health.recovered_at)), CONSECUTIVE_FAILURES + health.proven)


def ejections_in_a_row(health: Health, now: float) -> int:
    """How many came before, forgotten after a healthy minute."""
    return 0 if health.recovered_at > 0 and now - health.recovered_at >= WELL_S else health.ejections


def ejection_s(before: int, rng: random.Random, base_s: float = EJECTION_S) -> float:
    """How long to eject after `before` ejections in a row: doubling, capped, ± 15 %."""
    cap = max(base_s, MAX_EJECTION_S)
    return min(cap, base_s * 2.0 ** min(before, 30)) * (1 + JITTER * (2 * rng.random() - 1))


def after_report(
    health: Health,
    counters: Counters,
    failure: Failure | None,
    rng: random.Random,
    *,
    counts_for_health: bool = True,
    base_s: float = EJECTION_S,
) -> Eject | Recover | None:
    """What follows from one call's outcome, once the store has counted it; `failure` is None for a success.

    The outcome of a call made before an ejection says nothing new and changes nothing. A probe that got any answer,
    even a 429 or one that blames the job, has shown that the endpoint is alive.
    """
    now, kind = counters.at, failure and failure.kind
    cut_off = kind is FailureKind.TIMED_OUT and not counts_for_health  # by its own job, or late
    if cut_off or kind in PROVES_NOTHING or circuit(health, now) in (Circuit.ISOLATED, Circuit.DISABLED):
        return None
    if failure is None or not counts_for_health:
        return Recover() if counters.probe else None
    why = str(kind)
    if kind is FailureKind.UNAVAILABLE:  # our own words: is the name, address or certificate wrong?
        why += f": {failure.message}"
    if counters.probe:
        return _eject(health, now, rng, base_s, f"probe failed: {why}")
    if health.open_until > now or circuit(health, now) is Circuit.HALF_OPEN:
        return None
    enough = CONSECUTIVE_UNREACHED if kind is FailureKind.UNAVAILABLE else CONSECUTIVE_FAILURES
    if failure.billed is Billed.YES and kind is not FailureKind.EMPTY:  # one caller's prompts may all get empty answers
        enough = CONSECUTIVE_WHEN_BILLED
    if counters.consecutive_failures >= enough or counters.failures_as_begun > enough:
        in_a_row = max(counters.consecutive_failures, counters.failures_as_begun)
        return _eject(health, now, rng, base_s, f"{in_a_row} failures in a row: {why}")
    if counters.error_rate > ERROR_RATE and counters.error_weight > ERROR_WEIGHT:
        return _eject(health, now, rng, base_s, f"{counters.error_rate:.0%} of recent calls failed: {why}")
    return None


def after_watch(
    view: EndpointView, overdue: int, now: float, rng: random.Random, *, base_s: float = EJECTION_S
) -> Eject | None:
    """Whether calls in flight hang: asked four times a second, long before their timeouts.

    overdue: calls in flight that their workers report as older than their own hang thresholds. Two of them count as a
    hang if they are half of those in flight or nothing has succeeded for 1.5 s; a lone one does if it is very old.
    """
    health, load = view.health, view.load
    if circuit(health, now) not in (Circuit.CLOSED, Circuit.RAMPING) or overdue == 0:
        return None
    silent_s = now - max(view.metrics.latency_at, load.oldest_started_at)
    several = overdue >= HANGING_CALLS and (2 * overdue >= load.in_flight or silent_s >= HANGING_SILENCE_S)
    alone = overdue == load.in_flight and silent_s >= LONE_HANG_S
    if not (several or alone):
        return None
    reason = f"{overdue} of {load.in_flight} calls hang"
    return _eject(health, now, rng, base_s, reason, EJECTIONS_OF_A_HANG)


def _eject(health: Health, now: float, rng: random.Random, base_s: float, reason: str, at_least: int = 1) -> Eject:
    before = max(ejections_in_a_row(health, now), at_least - 1)
    return Eject(ejection_s(before, rng, base_s), reason)
