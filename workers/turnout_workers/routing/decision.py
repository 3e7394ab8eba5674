"""Rank in Python, admit in Lua: one decision as a pure function of a snapshot, with everything that explains it."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from enum import StrEnum
from itertools import islice
from types import MappingProxyType
from typing import NamedTuple

from turnout.request import Lane, RoutingStrategy
from turnout_workers.routing import latency as timing
from turnout_workers.routing.call_limits import call_limits, overdue_after
from turnout_workers.routing.eligibility import (
    Exclusion,
    NoEligibleEndpoint,
    Reason,
    charged_tokens,
    match,
    upper_cost_microusd,
    upper_input_tokens,
    upper_output_tokens,
)
from turnout_workers.routing.estimate import estimates
from turnout_workers.routing.fleet import Endpoint, Snapshot
from turnout_workers.routing.options import MAX_PAUSE_S, WAITABLE_S, Options, why_busy
from turnout_workers.routing.profile import JobProfile
from turnout_workers.routing.strategies import STRATEGIES, Ranking, ranked, utilities

RECHECK_S = 5.0
"""When to look again if it isn't known when an endpoint comes back."""
MAX_RETRY_ERROR_RATE = 0.1
"""Interactive jobs are retried only below this error rate."""
MIN_HEDGE_S = 0.8
"""The earliest start of a second call."""
MAX_BIDS = 6
"""Candidates offered to one admission."""
MAX_HEDGE_BIDS = 4
"""Candidates offered for a second call."""
MIN_WAIT_S = 0.01
"""Clocks tick in milliseconds: a shorter wait could end too early, again and again."""

NONE_OVER_CEILING: Mapping[str, str] = MappingProxyType({})
OPEN_ENDED = frozenset({Reason.CEILING, Reason.DISABLED, Reason.ISOLATED, Reason.OPEN, Reason.PROBING})
"""Reasons with no known end."""


class Action(StrEnum):
    GO = "go"
    WAIT = "wait"
    REFUSE = "refuse"


class Candidate(NamedTuple):
    """An endpoint that may be called now, and what the job can expect of it."""

    endpoint: Endpoint
    expected_cost_microusd: int | None
    """None: the price is unknown."""
    upper_cost_microusd: int | None
    upper_input_tokens: int
    input_tokens: int
    output_tokens: int
    """What rate limits are charged until the answer is there, see `charged_tokens`."""
    latency_s: float
    """Predicted median."""
    sigma: float
    error_rate: float
    overdue_s: float
    """Age at which the call counts as hanging."""
    timeout_s: float
    """Total deadline of the call."""


class Hedge(NamedTuple):
    """A second call, in case the first one is slow."""

    after_s: float
    """The 95th percentile of the first call's latency."""
    candidates: tuple[Candidate, ...]


class Decision(NamedTuple):
    """What to do with a job, and why. Details are computed on demand."""

    action: Action
    strategy: RoutingStrategy
    snapshot_age_s: float
    decision_number: int | None
    options: Options
    ranking: Ranking
    ready: Sequence[int]
    """Indices of the ranking's options that may be called now, best first."""
    busy: Sequence[int]
    """Indices of the options that will have room soon, best first."""
    wait_s: float

    @property
    def at(self) -> float:
        return self.options.now

    @property
    def job(self) -> JobProfile:
        return self.options.job

    @property
    def waits_for(self) -> str | None:
        """The endpoint id for which the job waits."""
        if self.action is not Action.WAIT or not self.busy:
            return None
        return self.ranking.option(self.busy[0]).estimate.view.endpoint.id

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """Endpoints that may be called now, best first."""
        return tuple(self._candidate(index) for index in self.ready)

    @property
    def best(self) -> Candidate | None:
        return self._candidate(self.ready[0]) if self.ready else None

    def bids(self) -> tuple[Candidate, ...]:
        """Candidates to offer to admission, best first. The next admission gets those after them.

        If the strategy may wait, only those that are worth more to this job than waiting `WAITABLE_S` for the first:
        the reserve of more urgent lanes, which a snapshot doesn't show, is no reason to pay more.
        """
        strategy, ready = STRATEGIES[self.strategy], self.ready[:MAX_BIDS]
        if not strategy.may_wait or len(ready) < 2:
            return tuple(map(self._candidate, ready))
        first, *others = (self.ranking.options[index] for index in ready)
        (threshold, *scores), _ = utilities(self.job, [(WAITABLE_S, *first[1:]), *others], strategy, self.at)
        better = (index for index, score in zip(ready[1:], scores, strict=True) if score <= threshold)
        return tuple(map(self._candidate, (ready[0], *better)))

    def offering_busy(self) -> Decision:
        """The same decision with the busy candidates offered too: there may be room that the snapshot doesn't show."""
        if self.action is not Action.WAIT or not self.busy:
            return self
        return self._replace(action=Action.GO, ready=self.ranking.order, busy=(), wait_s=0.0)

    def has_more_than(self, bids: Sequence[Candidate]) -> bool:
        """Whether an endpoint that wasn't offered to admission could take the job now or before long."""
        return bool(self.options.exclusions) or len(bids) < len(self.ranking.options)

    @property
    def untried(self) -> tuple[str, ...]:
        """Up to three untried endpoints: enough to know if one is left after the two calls that may run at a time."""
        ids = (estimate.view.endpoint.id for *_, estimate in self.ranking.options)
        return tuple(islice((id for id in ids if id not in self.options.tried), 3))

    @property
    def exclusions(self) -> tuple[Exclusion, ...]:
        """Every endpoint that isn't a candidate, and why."""
        return (*self.options.match.exclusions, *self.not_now)

    @property
    def not_now(self) -> tuple[Exclusion, ...]:
        """Exclusions of the endpoints that meet the job's requirements."""
        options = map(self.ranking.option, self.busy)
        full = (Exclusion(one.estimate.view.endpoint.id, *why_busy(one, self.at)) for one in options)
        return (*self.options.exclusions, *full)

    def hedge(self, chosen: Candidate) -> Hedge | None:
        """When a second call may start if `chosen` hasn't answered, and to which endpoints; None: no second call.

        Only for interactive jobs, and to healthy endpoints that would answer in time and, together with the first
        call, stay below what the job may cost.
        """
        job = self.job
        if job.constraints.lane is not Lane.INTERACTIVE or not job.constraints.allow_fallback or len(self.ready) < 2:
            return None
        after_s = max(MIN_HEDGE_S, timing.quantile(chosen.latency_s, chosen.sigma, timing.Z95))
        left_s = math.inf if job.deadline is None else job.deadline - self.at - after_s
        left_microusd = job.cost_left_microusd - (chosen.upper_cost_microusd or 0)
        healthy = (self._candidate(index) for index in self.ready if not self.ranking.option(index).probe)
        others = (
            other
            for other in healthy
            if other.endpoint.id != chosen.endpoint.id
            and other.latency_s < left_s
            and (other.upper_cost_microusd or 0) <= left_microusd
        )
        bids = tuple(islice(others, MAX_HEDGE_BIDS))
        return Hedge(after_s, bids) if bids else None

    @property
    def refusal(self) -> NoEligibleEndpoint | None:
        """Why no endpoint can ever take the job; None: one can."""
        if self.action is not Action.REFUSE:
            return None
        return NoEligibleEndpoint({e.endpoint_id: e.text for e in self.exclusions})

    @property
    def own_ceiling_is_used_up(self) -> bool:
        """Whether an endpoint could take the job if earlier calls had left more of the job's ceiling."""
        return self.job.spent_microusd > 0 and any(one.reason is Reason.COST for one in self.options.exclusions)

    @property
    def only_money_is_missing(self) -> bool:
        """Whether ceilings alone keep the job from the endpoints that are healthy."""
        reasons = [one.reason for one in self.options.exclusions if one.reason.is_temporary]
        return not self.ranking.options and Reason.CEILING in reasons and OPEN_ENDED.issuperset(reasons)

    def _candidate(self, index: int) -> Candidate:
        job, options, ready = self.job, self.ranking.options, self.ready
        _, latency_s, cost, _, estimate = options[index]
        endpoint, sigma = estimate.view.endpoint, estimate.odds.sigma
        answer = upper_output_tokens(job, endpoint)
        longest_s = estimate.ttft_s + answer * estimate.s_per_token
        overdue_s, timeout_s = call_limits(
            options[index], job.expected_output_tokens, longest_s, alone=len(options) == 1
        )
        if job.timeout_s is not None:
            timeout_s = job.timeout_s
        elif job.deadline is not None and len(ready) > 1:
            # A hanging call is cut off while another endpoint still has time to answer.
            _, other_s, _, _, other = options[ready[0] if index != ready[0] else ready[1]]
            spare_s = timing.quantile(other_s, other.odds.sigma, timing.Z95)
            timeout_s = min(timeout_s, max(overdue_after(latency_s, sigma), job.deadline - self.at - spare_s))
        return Candidate(
            endpoint,
            None if cost == math.inf else math.ceil(cost),
            upper_cost_microusd(job, endpoint),
            upper_input_tokens(job, endpoint),
            *charged_tokens(job, estimate.view),
            latency_s,
            sigma,
            estimate.odds.error_rate,
            overdue_s,
            timeout_s,
        )


def rank(
    job: JobProfile,
    snapshot: Snapshot,
    now: float,
    rng: random.Random,
    *,
    default_strategy: RoutingStrategy = RoutingStrategy.BALANCED,
    tried: frozenset[str] = frozenset(),
    over_ceiling: Mapping[str, str] = NONE_OVER_CEILING,
    decision_number: int | None = None,
) -> Decision:
    """Order the endpoints that can take the job, or say how long to wait, or that none ever can.

    tried: endpoints that failed this job in this round; used again only if no other is free or will be soon.
    over_ceiling: endpoints that admission refused for money, and the accounts whose ceilings leave too little.
    decision_number: counts this caller's decisions, for strict round robin; None: at random.
    """
    name = job.constraints.strategy or default_strategy
    strategy = STRATEGIES[name]
    seed = rng.getrandbits(32)
    options = Options(job, match(snapshot.fleet, job.requirements), estimates(snapshot), now, seed, tried, over_ceiling)
    ranking = ranked(job, options.usable, strategy, now, seed, decision_number)
    ready, busy, waits = ranking.order, list[int](), list[float]()
    if options.any_busy:
        waits = [wait_s for wait_s, *_ in options.usable]
        ready = [index for index in ranking.order if waits[index] <= 0]
        busy = [index for index in ranking.order if waits[index] > 0]
    action, wait_s = Action.GO, 0.0
    if not ready:
        action, wait_s = _wait_or_refuse(waits, options.exclusions, now)
    elif strategy.may_wait and busy and ranking.order[0] == busy[0]:
        action, wait_s = Action.WAIT, max(MIN_WAIT_S, min(waits[busy[0]], MAX_PAUSE_S[job.constraints.lane]))
    return Decision(action, name, now - snapshot.at, decision_number, options, ranking, ready, busy, wait_s)


def worth_retrying(chosen: Candidate, lane: Lane) -> bool:
    """Whether to retry a failed call there: not while a person waits and many calls fail."""
    return lane is not Lane.INTERACTIVE or chosen.error_rate < MAX_RETRY_ERROR_RATE


def _wait_or_refuse(waits: list[float], exclusions: Sequence[Exclusion], now: float) -> tuple[Action, float]:
    """What to do if nothing may be called now: wait, and for how long, or refuse the job."""
    temporary = [exclusion for exclusion in exclusions if exclusion.reason.is_temporary]
    if not waits and not temporary:
        return Action.REFUSE, 0.0
    waits += [e.until - now for e in temporary if e.until is not None and e.until > now]
    return Action.WAIT, max(MIN_WAIT_S, min(waits, default=RECHECK_S))
