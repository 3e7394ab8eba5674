"""Which of the endpoints that match may be called now, which soon, and why the others may not.

Some are held back and used only when nothing else can take the job within a pause: first one that has never answered
and has its first calls, where another is known to answer; then one that is to be probed by a better suited job; then
one that is too slow by what its operator says; then those where this job failed; at last one that is full for long.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from turnout.request import Lane
from turnout_workers.routing.eligibility import Exclusion, Match, Reason, unfit
from turnout_workers.routing.estimate import Estimate, all_slots_taken, is_unproven
from turnout_workers.routing.fleet import Circuit
from turnout_workers.routing.health import circuit
from turnout_workers.routing.profile import JobProfile
from turnout_workers.routing.strategies import GOLDEN, Option, Row

PAUSE_S = {Lane.INTERACTIVE: 0.5, Lane.STANDARD: 0.5, Lane.BATCH: 3.0}
"""The longest that a job waits at a time for a better endpoint than those that are free."""
WAITABLE_S = 30.0
"""A cooldown or full limit longer than this is not waited for while another endpoint is free."""
COOLDOWN_SPREAD_S = 3.0
"""Time over which waiting jobs return after a cooldown."""
PROBE_AGAIN_S = 1.0
PROBE_OVERDUE_S = 30.0
"""A probe is a job that no person waits for, or any that would rather go there once none has come for so long."""
BELIEVED_S = 60.0
"""Age up to which an observed latency can exclude an endpoint from a job with `max_latency_s`."""

Why = tuple[Reason, str, float | None]
"""Why an endpoint is no candidate, in words, and until when, if that is known."""
HELD_BACK = (Reason.UNPROVEN, Reason.PROBING, Reason.SLOW, Reason.TRIED, Reason.FULL)
"""In the order in which they are used after all."""


class Options:
    """The options of one job: those to rank, and exclusions for all others that match."""

    def __init__(
        self,
        job: JobProfile,
        found: Match,
        estimates: Sequence[Estimate],
        now: float,
        seed: int,
        tried: frozenset[str],
        over_ceiling: Mapping[str, str],
    ) -> None:
        self.job = job
        self.now = now
        self.seed = seed
        self.tried = tried
        self.over_ceiling = over_ceiling
        self.match = found
        self._fits_everywhere = found.fits_everywhere(job)
        self._longest_s = job.constraints.max_latency_s or math.inf
        self.exclusions: list[Exclusion] = []
        """Why endpoints that match can't be called now, or aren't fit for a job of this size."""
        self.any_busy = False
        self._held_back: dict[Reason, list[tuple[Option, str]]] = {}
        self.usable = self._consider(estimates)
        if self._held_back:
            self._add_held_back()

    def _consider(self, estimates: Sequence[Estimate]) -> list[Row]:
        job = self.job
        given, out, longest = job.expected_input_tokens, job.expected_output_tokens, self._longest_s
        careful = not self._fits_everywhere or bool(self.tried) or bool(self.over_ceiling)
        usable: list[Row] = []
        for position in self.match.positions:
            estimate = estimates[position]
            ttft, pace, p_in, p_out, special, _, _, _, _ = estimate
            latency = ttft + out * pace
            if job.images:
                given = job.input_at(estimate.view.endpoint.image_rule).expected
            cost = given * p_in + out * p_out
            if not (special or careful or latency > longest):
                usable.append((0.0, latency, cost, False, estimate))
                continue
            option, state = Option(0.0, latency, cost, False, estimate), Circuit.CLOSED
            if special:
                state = circuit(estimate.view.health, self.now)
                option = self._as_it_is(option, state)
            if barred := self._barred(option, state):
                self.exclusions.append(Exclusion(estimate.view.endpoint.id, *barred))
            elif unwanted := self._unwanted(option):
                self._held_back.setdefault(unwanted[0], []).append((option, unwanted[1]))
            else:
                usable.append(option)
        return usable

    def _as_it_is(self, option: Option, state: Circuit) -> Option:
        """With its wait, and as a probe if it is one."""
        job, now, estimate = self.job, self.now, option.estimate
        view, health = estimate.view, estimate.view.health
        ready_at = health.cooldown_until
        if job.charged_at(view.endpoint.image_rule) > view.load.fits:
            ready_at = max(ready_at, view.load.ready_at)
        if health.cooldown_until > now:  # those who wait come back one by one: the first may be told to wait again
            chance = (self.seed / 2**32 + estimate.position * GOLDEN) % 1
            ready_at = max(ready_at, health.cooldown_until + chance * COOLDOWN_SPREAD_S)
        if all_slots_taken(view):  # about when one of its calls will end
            ready_at = max(ready_at, now + option.latency_s / view.load.in_flight)
        if ready_at > now:
            option, self.any_busy = option._replace(wait_s=ready_at - now), True
        if state is Circuit.HALF_OPEN:
            # Without its error rate, which is of the past: what it is like now is what a probe is to find out.
            odds = estimate.odds._replace(error_rate=0.0, tries=1.0)
            option = option._replace(probe=True, estimate=estimate._replace(odds=odds))
        return option

    def _barred(self, option: Option, state: Circuit) -> Why | None:
        """Why it may not take the job now."""
        job, now, view = self.job, self.now, option.estimate.view
        health = view.health
        if not self._fits_everywhere and (why := unfit(job, view.endpoint)):
            return *why, None
        if account := self.over_ceiling.get(view.endpoint.id):
            return Reason.CEILING, f"a call may cost more than the ceiling of {account} leaves", None
        if option.latency_s > self._longest_s and view.metrics.latency_samples:
            believed_until = view.metrics.latency_at + BELIEVED_S
            if now < believed_until:
                return Reason.SLOW, self._slowness(option), believed_until
        if option.wait_s > WAITABLE_S and health.cooldown_until > now:
            return why_busy(option, now)
        if state is Circuit.OPEN:
            return Reason.OPEN, f"ejected: {health.ejection_reason}", health.open_until
        if state is Circuit.HALF_OPEN and health.probing:
            return Reason.PROBING, "a probe is on its way", now + PROBE_AGAIN_S
        if state in (Circuit.DISABLED, Circuit.ISOLATED):
            return Reason(state.value), f"{state}: {health.why}", None
        return None

    def _unwanted(self, option: Option) -> tuple[Reason, str] | None:
        """Why another one is to take the job, if any can."""
        job, now, view = self.job, self.now, option.estimate.view
        if option.wait_s > WAITABLE_S:
            return why_busy(option, now)[:2]
        if view.endpoint.id in self.tried:
            return Reason.TRIED, "this job failed there a moment ago"
        if option.probe and job.constraints.lane is Lane.INTERACTIVE and now - view.health.open_until < PROBE_OVERDUE_S:
            return Reason.PROBING, "to be probed by a job that nobody waits for"
        if option.latency_s > self._longest_s:
            told = (view.endpoint.expected_ttft_s, view.endpoint.expected_s_per_token)
            if None not in told:
                return Reason.SLOW, self._slowness(option)
        if is_unproven(view) and not option.probe:
            return Reason.UNPROVEN, f"has {view.load.in_flight} calls, and has never answered"
        return None

    def _slowness(self, option: Option) -> str:
        return f"takes about {option.latency_s:.1f} s, at most {self._longest_s:g} s wanted"

    def _add_held_back(self) -> None:
        for reason in HELD_BACK:
            held_back, silent = self._held_back.get(reason, []), reason is Reason.UNPROVEN
            within_s = math.inf if reason is Reason.FULL else PAUSE_S[self.job.constraints.lane]
            soon = [estimate for wait_s, *_, estimate in self.usable if wait_s <= within_s]
            if any(not silent or estimate.view.metrics.latency_samples for estimate in soon):
                for option, text in held_back:
                    until = self.now + option.wait_s if option.wait_s else None
                    self.exclusions.append(Exclusion(option.estimate.view.endpoint.id, reason, text, until))
            else:
                self.usable += [option for option, _ in held_back]
        # As a record's, from which a decision is repeated: in turn goes by it.
        self.usable.sort(key=lambda row: row[-1].position)


def why_busy(option: Option, now: float) -> Why:
    """Why an option has to wait, and until when."""
    health, until = option.estimate.view.health, now + option.wait_s
    if health.cooldown_until > now:
        return Reason.COOLDOWN, f"cools down: {health.cooldown_reason or 'asked to wait'}", until
    return Reason.FULL, f"no room for {option.wait_s:.1f} s", until
