"""The circuit of an endpoint: closed → open → half open → ramping → closed. Pure policy over shared counts.

Stores only count. After each report the worker asks `after_report` what follows and tells the store; the
store applies it atomically, with `until = max(old, new)`, so that two workers that decide the same thing at
once do it once. A 429 is a cooldown, and no verdict on health. An endpoint is judged on its own numbers
whatever the size of the fleet; a lone one is ejected as well, and its jobs wait.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from turnout_workers.routing.failure import Billed, Failure, FailureKind
from turnout_workers.routing.fleet import Circuit, EndpointView, Health

CONSECUTIVE_FAILURES = 4
"""Failures in a row, over the whole fleet, that open a circuit, in the order in which calls ended. Or one more in that
in which they began, for an endpoint that breaks may still answer older calls; more, as counting twice finds bad luck
more often."""
CONSECUTIVE_UNREACHED = 2
"""The same where nobody answers at all: few successes stand against it, and a needless ejection costs 2 s."""
CONSECUTIVE_WHEN_BILLED = 2
"""The same where a failure costs money."""
ERROR_RATE = 0.6
ERROR_WEIGHT = 6.0
"""Error rate above which a circuit opens, and the number of recent outcomes that it takes to believe it."""
ERROR_MEMORY_S = 20.0
"""Time constant with which stores forget outcomes."""
EJECTION_S = 2.0
MAX_EJECTION_S = 10.0
"""The first ejection, doubled by each further one in a row up to the most: longer only delays the return."""
JITTER = 0.15
WELL_S = 60.0
"""Time without ejection after which the next one counts as the first again."""
RAMP_S = 8.0
"""Time after a recovery in which only so many calls may be in flight as `ramp_slots` says."""
RAMP_EXCESS = 1.2
"""Most calls in a second of a ramp, as a multiple of what a rate limit gives a second."""
HANGING_CALLS = 2
HANGING_SILENCE_S = 1.5
EJECTIONS_OF_A_HANG = 2
"""As how many in a row a first one for hanging counts: a probe that hangs, too, takes seconds to show it."""
LONE_HANG_S = 20.0
"""Age at which a single overdue call, with no other in flight to compare, counts as a hang."""


@dataclass(frozen=True, slots=True)
class Counters:
    """An endpoint's outcomes over the whole fleet, as a store counts them after each report."""

    at: float
    """When they were read, on the store's clock."""
    consecutive_failures: int
    """In the order in which calls ended."""
    failures_as_begun: int
    """In the order in which calls began: a success whose call began before these failed ones doesn't end the row."""
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
"""Calls that we ended ourselves say nothing, not even that a probe succeeded."""


def circuit(health: Health, now: float) -> Circuit:
    """The state of the circuit at `now`. A cooldown (`cooldown_until`) is none of its business."""
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
    """Calls in flight at most while the endpoint ramps, so that a whole fleet's backlog doesn't hit a server that just
    woke.

    As in TCP's slow start, each call that is answered makes room for two; at first for as many as show that it is down
    again. Where answers are slow, time makes room, too: twice as much each second.
    """
    return max(1 << math.floor(max(0.0, now - health.recovered_at)), CONSECUTIVE_FAILURES + health.proven)


def ramp_pace(requests_per_minute: int, second: int) -> int:
    """Calls begun in this second of a ramp at most, to the fraction over several seconds."""
    most = RAMP_EXCESS * requests_per_minute / 60
    return max(1, math.floor((second + 1) * most) - math.floor(second * most))


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
    """What follows from one call's outcome, when the store has counted it; `failure` is None for a success.

    The outcome of a call made before an ejection says nothing new and does nothing. A probe that was answered
    at all, if only by a 429 or by blaming the job, has shown that the endpoint is alive.
    """
    now, kind = counters.at, failure and failure.kind
    cut = kind is FailureKind.TIMED_OUT and not counts_for_health  # by its own job, or late
    if cut or kind in PROVES_NOTHING or circuit(health, now) in (Circuit.ISOLATED, Circuit.DISABLED):
        return None
    if failure is None or not counts_for_health:
        return Recover() if counters.probe else None
    why = str(kind)
    if kind is FailureKind.UNAVAILABLE:  # the words are ours: whether name, address or certificate is wrong
        why += f": {failure.message}"
    if counters.probe:
        return _eject(health, now, rng, base_s, f"probe failed: {why}")
    if health.open_until > now or circuit(health, now) is Circuit.HALF_OPEN:
        return None
    enough = CONSECUTIVE_UNREACHED if kind is FailureKind.UNAVAILABLE else CONSECUTIVE_FAILURES
    if failure.billed is Billed.YES and kind is not FailureKind.EMPTY:  # a few prompts of one caller may all get those
        enough = CONSECUTIVE_WHEN_BILLED
    if counters.consecutive_failures >= enough or counters.failures_as_begun > enough:
        row = max(counters.consecutive_failures, counters.failures_as_begun)
        return _eject(health, now, rng, base_s, f"{row} failures in a row: {why}")
    if counters.error_rate > ERROR_RATE and counters.error_weight > ERROR_WEIGHT:
        return _eject(health, now, rng, base_s, f"{counters.error_rate:.0%} of recent calls failed: {why}")
    return None


def after_watch(
    view: EndpointView, overdue: int, now: float, rng: random.Random, *, base_s: float = EJECTION_S
) -> Eject | None:
    """Whether calls in flight hang: asked four times a second, long before their timeouts.

    overdue: those of them that their workers report as older than their own hang thresholds.
    Two calls older than their own thresholds, if they are half of those in flight or if nothing succeeded
    for 1.5 s; or a lone one that is very old.
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
