"""Rank in Python, admit in Lua: one decision, as a pure function of a snapshot, and all that explains it."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any, NamedTuple

from turnout.request import Lane, RoutingStrategy
from turnout_workers.routing import latency as timing
from turnout_workers.routing.eligibility import (
    Exclusion,
    Match,
    NoEligibleEndpoint,
    Reason,
    match,
    too_large,
    upper_cost_microusd,
    upper_output_tokens,
)
from turnout_workers.routing.estimate import Estimate, estimates
from turnout_workers.routing.fleet import Circuit, Endpoint, EndpointView, Snapshot
from turnout_workers.routing.health import circuit, ramp
from turnout_workers.routing.profile import JobProfile
from turnout_workers.routing.strategies import GOLDEN, STRATEGIES, Option, Ranking, ranking

PAUSE_S = {Lane.INTERACTIVE: 0.5, Lane.STANDARD: 0.5, Lane.BATCH: 3.0}
"""The longest that a job is left alone at a time while it waits for a better endpoint than those free."""
WAITABLE_S = 30.0
"""A cooldown or full limit longer than this is not waited for while another endpoint is free."""
RECHECK_S = 5.0
"""When nothing is known of when an endpoint comes back, look again after this."""
PROBE_AGAIN_S = 1.0
PROBE_TOKENS = 512
"""A probe is a short job: a long one would delay the recovery by as long as it takes."""
BELIEVED_S = 60.0
"""Age up to which an observed latency can exclude an endpoint from a job with `max_latency_s`."""
HEDGE_MIN_S = 0.8

NOTHING = Ranking((), [], [], [])
EMPTY: list[int] = []


class Action(StrEnum):
    GO = "go"
    WAIT = "wait"
    REFUSE = "refuse"


class Candidate(NamedTuple):
    """An endpoint that may be called now, and what this job can expect of it."""

    endpoint: Endpoint
    score: float
    """Lower is better; comparable within one decision only."""
    expected_cost_microusd: int | None
    """None: the price is unknown."""
    upper_cost_microusd: int | None
    input_tokens: int
    output_tokens: int
    """Upper estimates, for admission."""
    latency_s: float
    """Predicted median."""
    sigma: float
    p_late: float
    error_rate: float
    overdue_s: float
    """Age at which the call counts as hanging."""
    timeout_s: float
    """Total deadline of the call."""
    probe: bool
    """Half open: this call, if admitted, is the one probe."""
    probe_allowed: bool
    """Whether this job may be a probe at all (it is short and not interactive, or nothing else is left)."""


@dataclass(frozen=True)
class Decision:
    """What to do with a job, and why. Details are worked out when asked for."""

    action: Action
    strategy: RoutingStrategy
    at: float
    snapshot_age_s: float
    seed: int
    job: JobProfile
    ranking: Ranking
    ready: Sequence[int]
    """Indices of the ranking's options that may be called now, best first."""
    busy: Sequence[int]
    """Of those that will have room soon, best first."""
    match: Match
    passing: Sequence[Exclusion]
    """Why others can't be called now, or aren't fit for a job of this size."""
    wait_s: float = 0.0
    last_resort: bool = False
    """Nothing better is left: any job may probe."""

    @property
    def waits_for(self) -> str | None:
        """The endpoint id for which the job waits."""
        if self.action is not Action.WAIT or not self.busy:
            return None
        return self.ranking.options[self.busy[0]].estimate.view.endpoint.id

    @property
    def retry_at(self) -> float:
        """When to decide again."""
        return self.at + self.wait_s

    @cached_property
    def candidates(self) -> tuple[Candidate, ...]:
        """Those that may be called now, best first."""
        return tuple(self._candidate(index) for index in self.ready)

    @property
    def best(self) -> Candidate | None:
        return self._candidate(self.ready[0]) if self.ready else None

    def top(self, count: int) -> tuple[Candidate, ...]:
        """The first `count` candidates."""
        return tuple(self._candidate(index) for index in self.ready[:count])

    @property
    def exclusions(self) -> tuple[Exclusion, ...]:
        """Every endpoint that is no candidate, and why."""
        return (
            *self.match.exclusions,
            *self.passing,
            *(self._full(self.ranking.options[index]) for index in self.busy),
        )

    @property
    def hedge_after_s(self) -> float | None:
        """When a second call to the runner-up may start, if the first has not answered: its 95th percentile.

        None: not for this job; only interactive ones with a runner-up that would still be in time.
        """
        if self.job.lane is not Lane.INTERACTIVE or self.action is not Action.GO or len(self.ready) < 2:
            return None
        first, second = (self.ranking.options[index] for index in self.ready[:2])
        after_s = max(HEDGE_MIN_S, timing.quantile(first.latency_s, first.estimate.sigma, timing.Z95))
        if second.probe or (
            self.job.deadline is not None and self.at + after_s + second.latency_s > self.job.deadline
        ):
            return None
        return after_s

    def to_record(self) -> dict[str, Any]:
        """All that explains and repeats this decision, as compact JSON values; see `record.replay`."""
        from turnout_workers.routing.record import to_record

        return to_record(self)

    def raise_if_refused(self) -> None:
        """Raises `NoEligibleEndpoint` with each endpoint's reason."""
        if self.action is Action.REFUSE:
            raise NoEligibleEndpoint({e.endpoint_id: e.text for e in self.exclusions})

    def _candidate(self, index: int) -> Candidate:
        option, job = self.ranking.options[index], self.job
        estimate = option.estimate
        endpoint = estimate.view.endpoint
        answer = upper_output_tokens(job, endpoint)
        longest = estimate.ttft_s + answer * estimate.s_per_token
        timeout = timing.call_timeout(option.latency_s, estimate.sigma, longest)
        return Candidate(
            endpoint,
            self.ranking.scores[index],
            None if option.cost == math.inf else math.ceil(option.cost),
            upper_cost_microusd(job, endpoint),
            job.input_tokens,
            answer,
            option.latency_s,
            estimate.sigma,
            self.ranking.late[index],
            estimate.error_rate,
            timing.overdue_after(option.latency_s, estimate.sigma),
            job.timeout_s or timeout,
            option.probe,
            self.last_resort or may_probe(job),
        )

    def _full(self, option: Option) -> Exclusion:
        view = option.estimate.view
        until = self.at + option.wait_s
        if view.health.blocked_until > self.at:
            return Exclusion(view.endpoint.id, Reason.COOLDOWN, f"cools down: {view.health.reason}", until)
        return Exclusion(view.endpoint.id, Reason.FULL, f"no room for {option.wait_s:.1f} s", until)


def may_probe(job: JobProfile) -> bool:
    """Whether a job may try an endpoint that was down: a short one that no person waits for."""
    return job.lane is not Lane.INTERACTIVE and job.expected_output_tokens <= PROBE_TOKENS


def rank(
    job: JobProfile,
    snapshot: Snapshot,
    now: float,
    rng: random.Random,
    *,
    default_strategy: RoutingStrategy = RoutingStrategy.BALANCED,
    tried: frozenset[str] = frozenset(),
    turn: int | None = None,
) -> Decision:
    """Order the endpoints that can take the job, or say until when to wait, or that none ever can.

    tried: endpoints that failed this job in this round; used again only when no other is free or nearly so.
    turn: how many decisions this caller made, for round robin in strict turns; None: at random.
    """
    name = job.strategy or default_strategy
    strategy = STRATEGIES[name]
    seed = rng.getrandbits(32)
    found = match(snapshot.fleet, job.requirements)
    choice = _Choice(job, now, seed, tried)
    choice.consider(found, estimates(snapshot))
    options, last_resort = choice.options()
    ranked = ranking(job, options, strategy, now, seed, turn) if options else NOTHING
    ready, busy = ranked.order, EMPTY
    if choice.any_busy:
        ready = [index for index in ranked.order if options[index].wait_s <= 0]
        busy = [index for index in ranked.order if options[index].wait_s > 0]
    action, wait_s = Action.GO, 0.0
    if not ready:
        action, wait_s = choice.outlook([options[index].wait_s for index in busy])
    elif busy and strategy.patient and ranked.order[0] == busy[0]:
        action, wait_s = Action.WAIT, min(options[busy[0]].wait_s, PAUSE_S[job.lane])
    return Decision(
        action,
        name,
        now,
        now - snapshot.at,
        seed,
        job,
        ranked,
        ready,
        busy,
        found,
        choice.passing,
        wait_s,
        last_resort,
    )


class _Choice:
    """The options of one job, sorted into those to use, and those to use only when there is no other."""

    def __init__(self, job: JobProfile, now: float, seed: int, tried: frozenset[str]) -> None:
        self.job, self.now, self.seed, self.tried = job, now, seed, tried
        self.passing: list[Exclusion] = []
        self.any_busy = False
        self._first: list[Option] = []
        self._reluctant: list[tuple[Option, Reason, str]] = []
        self._tried: list[Option] = []

    def consider(self, found: Match, all_estimates: list[Estimate]) -> None:
        """Sort every endpoint that matches into one of the lists, or exclude it."""
        job, now, tried, first = self.job, self.now, self.tried, self._first
        cached_in, out, answer = job.cached_input_tokens, job.expected_output_tokens, job.output_tokens
        fresh_in = job.expected_input_tokens - cached_in
        left = math.inf if job.max_cost_microusd is None else job.max_cost_microusd - job.spent_microusd
        tight = (
            left
            <= job.input_tokens * found.input_price + (answer or found.answer_tokens) * found.output_price
            or job.expected_input_tokens + (answer or 0) > found.context_tokens
            or (answer or 0) > found.output_tokens
        )
        longest, new = job.max_latency_s or math.inf, tuple.__new__
        for position in found.positions:
            estimate = all_estimates[position]
            _, ready_at, ttft, pace, _, _, _, _, _, p_in, p_out, p_cached, special, view = estimate
            if tight and (unfit := too_large(job, view.endpoint)):
                self.passing.append(Exclusion(view.endpoint.id, *unfit))
                continue
            wait = 0.0
            if ready_at > now:
                wait = ready_at - now
                if wait > WAITABLE_S:
                    self._exclude(view.endpoint.id, *self._closed(estimate), ready_at)
                    continue
                self.any_busy = True
            duration = ttft + out * pace
            if duration > longest and self._too_slow(view, duration):
                continue
            cost = fresh_in * p_in + out * p_out
            if cached_in:
                cost += cached_in * p_cached
            # Not Option(…): that constructor would take a quarter of the time of a decision.
            option = new(Option, (wait, duration, cost, False, estimate))
            if special and not self._special(option):
                continue
            if tried and view.endpoint.id in tried:
                self._tried.append(option)
            else:
                first.append(option)

    def _too_slow(self, view: EndpointView, duration: float) -> bool:
        believed_until = view.metrics.latency_at + BELIEVED_S
        if self.now >= believed_until:
            return False
        text = f"takes about {duration:.1f} s, at most {self.job.max_latency_s:g} s wanted"
        self._exclude(view.endpoint.id, Reason.SLOW, text, believed_until)
        return True

    def _special(self, option: Option) -> bool:
        """Whether an endpoint whose circuit isn't simply closed is an option like any other."""
        view, now = option.estimate.view, self.now
        endpoint, health = view.endpoint, view.health
        state = circuit(health, now)
        if state is Circuit.CLOSED:
            return True
        if state is Circuit.RAMPING:
            chance = (self.seed / 2**32 + option.estimate.position * GOLDEN) % 1
            share = ramp(health, now)
            if chance >= share:
                self._reluctant.append((option, Reason.RAMPING, f"recovering, at {share:.0%} of its traffic"))
            return chance < share
        if state is Circuit.HALF_OPEN and not health.probing:
            # Its error rate is of the past: what it is like now is what the probe is to find out.
            probe = option._replace(probe=True, estimate=option.estimate._replace(error_rate=0.0, tries=1.0))
            if may_probe(self.job) and endpoint.id not in self.tried:
                self._first.append(probe)
            else:
                self._reluctant.append((probe, Reason.PROBING, "to be probed by a short job"))
        elif state is Circuit.HALF_OPEN:
            self._exclude(endpoint.id, Reason.PROBING, "a probe is on its way", now + PROBE_AGAIN_S)
        elif state is Circuit.OPEN:
            self._exclude(endpoint.id, Reason.OPEN, f"ejected: {health.reason}", health.open_until)
        elif state is Circuit.DISABLED:
            self._exclude(endpoint.id, Reason.DISABLED, f"disabled: {health.disabled}")
        else:
            self._exclude(endpoint.id, Reason.ISOLATED, "isolated by an operator")
        return False

    def options(self) -> tuple[list[Option], bool]:
        """What to rank, and whether it is the last resort; excludes the rest."""
        first = self._first
        pause = PAUSE_S[self.job.lane]
        if (self._reluctant or self._tried) and not any(option.wait_s <= pause for option in first):
            first = first + [option for option, _, _ in self._reluctant]
            resort = bool(self._reluctant)
            if not any(option.wait_s <= pause for option in first):
                first = first + self._tried
                return first, resort
            self._exclude_tried()
            return first, resort
        for option, reason, text in self._reluctant:
            self._exclude(option.estimate.view.endpoint.id, reason, text)
        self._exclude_tried()
        return first, False

    def _exclude_tried(self) -> None:
        for option in self._tried:
            self._exclude(
                option.estimate.view.endpoint.id, Reason.TRIED, "this job failed there a moment ago"
            )

    def _exclude(self, endpoint_id: str, reason: Reason, text: str, until: float | None = None) -> None:
        self.passing.append(Exclusion(endpoint_id, reason, text, until))

    def _closed(self, estimate: Estimate) -> tuple[Reason, str]:
        health = estimate.view.health
        if health.blocked_until > self.now:
            return Reason.COOLDOWN, f"cools down: {health.reason}"
        return Reason.FULL, "no room within its limits"

    def outlook(self, times: list[float]) -> tuple[Action, float]:
        """What to do when nothing may be called now: wait, and for how long, or refuse the job."""
        passing = [e for e in self.passing if e.reason not in _NEVER]
        if not times and not passing:
            return Action.REFUSE, 0.0
        times += [e.until - self.now for e in passing if e.until is not None and e.until > self.now]
        return Action.WAIT, max(0.0, min(times, default=RECHECK_S))


_NEVER = frozenset({Reason.CONTEXT, Reason.OUTPUT, Reason.COST})
