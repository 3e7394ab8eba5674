"""Which of the matching endpoints may be called now, which soon, and why the others may not.

Some are held back, and used only if nothing else can take the job within a pause, in this order: one that has never
answered and already has its first calls, if another is known to answer; one that a better suited job should probe; one
that is too slow according to its operator; those where this job failed; one that will be full for long.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from turnout.request import Lane
from turnout_workers.routing.eligibility import Exclusion, Match, Reason, charged_tokens, unfit
from turnout_workers.routing.estimate import Estimate, all_slots_taken, is_unproven
from turnout_workers.routing.fleet import Circuit
from turnout_workers.routing.health import circuit
from turnout_workers.routing.profile import JobProfile
from turnout_workers.routing.strategies import GOLDEN, Option, Row

MAX_PAUSE_S = {Lane.INTERACTIVE: 0.5, Lane.STANDARD: 0.5, Lane.BATCH: 3.0}
"""The longest single wait for a better endpoint than those that are free."""
WAITABLE_S = 30.0
"""A longer cooldown or full limit isn't waited for while another endpoint is free."""
COOLDOWN_SPREAD_S = 3.0
"""Waiting jobs return over this time after a cooldown."""
PROBE_AGAIN_S = 1.0
"""When to look again while a probe is in flight."""
PROBE_OVERDUE_S = 30.0
"""A probe is a job that no person waits for, or after this time any job that prefers the endpoint."""
BELIEVED_S = 60.0
"""Up to this age, an observed latency can exclude an endpoint from a job with `max_latency_s`."""

Why = tuple[Reason, str, float | None]
"""Why an endpoint isn't a candidate, in words, and until when, if that is known."""
HELD_BACK = (Reason.UNPROVEN, Reason.PROBING, Reason.SLOW, Reason.TRIED, Reason.FULL)
"""In the order in which they are used if nothing else is left."""


class Options:
    """The options of one job: those to rank, and exclusions for all other endpoints that match."""

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
        """Why endpoints that match can't be called now, or are unfit for this job."""
        self.any_busy = False
        self._held_back: dict[Reason, list[tuple[Option, str]]] = {}
        self.usable = self._consider(estimates)
        if self._held_back:
            self._add_held_back()

    def _consider(self, estimates: Sequence[Estimate]) -> list[Row]:
        job = self.job
        input_tokens, output_tokens, longest_s = job.expected_input_tokens, job.expected_output_tokens, self._longest_s
        look_at_all = not self._fits_everywhere or bool(self.tried) or bool(self.over_ceiling)
        usable: list[Row] = []
        for position in self.match.positions:
            estimate = estimates[position]
            ttft_s, s_per_token, input_price, output_price, needs_a_look, _, _, _, _ = estimate
            latency_s = ttft_s + output_tokens * s_per_token
            if job.images:
                input_tokens = job.input_at(estimate.view.endpoint.image_rule).expected
            cost = input_tokens * input_price + output_tokens * output_price
            if not (needs_a_look or look_at_all or latency_s > longest_s):
                usable.append((0.0, latency_s, cost, False, estimate))
                continue
            option, state = Option(0.0, latency_s, cost, False, estimate), Circuit.CLOSED
            if needs_a_look:
                state = circuit(estimate.view.health, self.now)
                option = self._with_wait_and_probe(option, state)
            if barred := self._barred(option, state):
                self.exclusions.append(Exclusion(estimate.view.endpoint.id, *barred))
            elif unwanted := self._unwanted(option):
                self._held_back.setdefault(unwanted[0], []).append((option, unwanted[1]))
            else:
                usable.append(option)
        return usable

    def _with_wait_and_probe(self, option: Option, state: Circuit) -> Option:
        """The option with its wait, and marked as a probe if it is one."""
        job, now, estimate = self.job, self.now, option.estimate
        view, health = estimate.view, estimate.view.health
        ready_at = health.cooldown_until
        if sum(charged_tokens(job, view)) > view.load.fits:
            ready_at = max(ready_at, view.load.ready_at)
        if health.cooldown_until > now:  # waiting jobs return one by one: the first may be asked to wait again
            chance = (self.seed / 2**32 + estimate.position * GOLDEN) % 1
            ready_at = max(ready_at, health.cooldown_until + chance * COOLDOWN_SPREAD_S)
        if all_slots_taken(view):  # one of its calls will end about then
            ready_at = max(ready_at, now + option.latency_s / view.load.in_flight)
        if ready_at > now:
            option, self.any_busy = option._replace(wait_s=ready_at - now), True
        if state is Circuit.HALF_OPEN:
            # Without its past error rate: the probe is to find out the present one.
            odds = estimate.odds._replace(error_rate=0.0, tries=1.0)
            option = option._replace(probe=True, estimate=estimate._replace(odds=odds))
        return option

    def _barred(self, option: Option, state: Circuit) -> Why | None:
        """Why the endpoint may not take the job now."""
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
            return Reason.PROBING, "a probe is in flight", now + PROBE_AGAIN_S
        if state in (Circuit.DISABLED, Circuit.ISOLATED):
            return Reason(state.value), f"{state}: {health.why}", None
        return None

    def _unwanted(self, option: Option) -> tuple[Reason, str] | None:
        """Why another endpoint should take the job, if one can."""
        job, now, view = self.job, self.now, option.estimate.view
        if option.wait_s > WAITABLE_S:
            return why_busy(option, now)[:2]
        if view.endpoint.id in self.tried:
            return Reason.TRIED, "this job failed there a moment ago"
        if option.probe and job.constraints.lane is Lane.INTERACTIVE and now - view.health.open_until < PROBE_OVERDUE_S:
            return Reason.PROBING, "to be probed by a job that no person waits for"
        configured = (view.endpoint.expected_ttft_s, view.endpoint.expected_s_per_token)
        if option.latency_s > self._longest_s and None not in configured:
            return Reason.SLOW, self._slowness(option)
        if is_unproven(view) and not option.probe:
            return Reason.UNPROVEN, f"has {view.load.in_flight} calls in flight and has never answered"
        return None

    def _slowness(self, option: Option) -> str:
        return f"takes about {option.latency_s:.1f} s, at most {self._longest_s:g} s wanted"

    def _add_held_back(self) -> None:
        for reason in HELD_BACK:
            held_back, unproven = self._held_back.get(reason, []), reason is Reason.UNPROVEN
            within_s = math.inf if reason is Reason.FULL else MAX_PAUSE_S[self.job.constraints.lane]
            soon = [estimate for wait_s, *_, estimate in self.usable if wait_s <= within_s]
            if any(not unproven or estimate.view.metrics.latency_samples for estimate in soon):
                for option, text in held_back:
                    until = self.now + option.wait_s if option.wait_s else None
                    self.exclusions.append(Exclusion(option.estimate.view.endpoint.id, reason, text, until))
            else:
                self.usable += [option for option, _ in held_back]
        # In the fleet's order, as in a logged decision that is repeated: round robin depends on it.
        self.usable.sort(key=lambda row: row[-1].position)


def why_busy(option: Option, now: float) -> Why:
    """Why an option has to wait, and until when."""
    health, until = option.estimate.view.health, now + option.wait_s
    if health.cooldown_until > now:
        return Reason.COOLDOWN, f"cools down: {health.cooldown_reason or 'asked to wait'}", until
    return Reason.FULL, f"no room for {option.wait_s:.1f} s", until
