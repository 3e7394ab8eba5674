"""What to do after a call: finish, retry, fail over, defer or give up. The one table of failures.

Retry: the same endpoint again, unless another is better by now. Fail over: another endpoint, which spends no retry.
Defer: nothing can be done now; the job is parked, and no attempt is spent. While an endpoint remains that this job
hasn't tried, none is tried twice, except in place, as `Rule.retries` and `Rule.waits` allow.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from turnout_workers.routing.failure import Failure, FailureKind, Scope

MAX_ATTEMPTS = 8
"""Attempts that a job may spend before it fails. Waiting, cooldowns and refused connections spend none, nor does a
probe, because its endpoint was known to be out."""
MAX_CALLS = 64
"""Attempts and probes of a job: it may break every endpoint, and be the only one to probe whether one is back."""
MAX_MODELS = 16
"""Models that may refuse a job before it fails: one provider may refuse it at all of its hundreds, another not."""
SHORT_WAIT_S = 2.0
"""The longest Retry-After that is waited for in place."""
COOLDOWN_S = 5.0
"""Cooldown after a 429 that names no time."""
MAX_JITTER_S = 5.0
"""The most that is added to a cooldown, so that jobs don't all come back at once."""
QUOTA_COOLDOWN_S = 3600.0
"""Least cooldown of a quota that refills once a day."""
BACKOFF_S = 0.25
MAX_BACKOFF_S = 8.0
MAX_REST_S = 120.0
"""The longest rest of a job that keeps finding out that an endpoint is out or over its limit, or that this machine has
reached its own. Meanwhile other jobs find out; each rest is twice as long as the last."""
RESTS_AFTER = 4
"""Calls that only find an endpoint out or full, before a job's first rest. So in an outage of hours
no job makes its last call while there are others."""


class Next(StrEnum):
    """What becomes of a job after one of its calls."""

    FINISH = "finish"
    RETRY = "retry"
    FAIL_OVER = "fail_over"
    DEFER = "defer"
    GIVE_UP = "give_up"


@dataclass(frozen=True, slots=True)
class Rule:
    """What one kind of failure means, wherever and whenever it happens."""

    retries: int = 0
    """How often the same endpoint is tried again, unless it asks us to wait longer than `SHORT_WAIT_S`."""
    waits: bool = False
    """After a Retry-After of at most `SHORT_WAIT_S`, the same endpoint is tried again."""
    cooldown_s: float | None = None
    """Least cooldown; None: only what Retry-After asks for."""
    counts: bool = False
    """Counts against the endpoint's health."""
    spends: bool = False
    """Spends one of the job's attempts, so that a job that breaks every endpoint ends."""
    disables: bool = False
    """Takes the endpoint or its account out until an operator or a health check brings it back."""
    unsuited: bool = False
    """This endpoint can't do this job, now or later; when none is left the job fails."""
    max_failures: float = math.inf
    """The job fails when this many of its calls have failed in this way."""
    max_providers: float = math.inf
    """The job fails when it has failed in this way at this many providers, whatever their models."""


RULES: dict[FailureKind, Rule] = {
    FailureKind.RATE_LIMITED: Rule(waits=True, cooldown_s=COOLDOWN_S),
    FailureKind.QUOTA_EXHAUSTED: Rule(cooldown_s=QUOTA_COOLDOWN_S),
    # One 503 or refused connection is no reason to avoid an endpoint for seconds: the circuit breaker, which sees
    # all workers' calls, decides. A Retry-After takes effect immediately.
    FailureKind.OVERLOADED: Rule(counts=True),
    FailureKind.UNAVAILABLE: Rule(counts=True),
    FailureKind.TIMED_OUT: Rule(counts=True, spends=True),
    FailureKind.INTERRUPTED: Rule(counts=True, spends=True),
    FailureKind.SERVER_ERROR: Rule(counts=True, spends=True, retries=1),
    FailureKind.MALFORMED: Rule(counts=True, spends=True),
    # A broken endpoint gives such answers, and so does a model that has nothing to say.
    FailureKind.EMPTY: Rule(counts=True, spends=True, max_failures=3),
    FailureKind.OFF_SCHEMA: Rule(spends=True, retries=1),
    FailureKind.UNAUTHORIZED: Rule(disables=True),
    FailureKind.BILLING: Rule(disables=True),
    FailureKind.UNAFFORDABLE: Rule(cooldown_s=0),  # other jobs are served: only this one waits for credit
    # The prompt may have been refused, not the key, and then health checks find nothing wrong: without the bound, such
    # a job would take account after account from all others.
    FailureKind.FORBIDDEN: Rule(disables=True, max_failures=MAX_MODELS),
    FailureKind.MODEL_NOT_FOUND: Rule(disables=True),
    FailureKind.CONTEXT_LENGTH: Rule(unsuited=True),
    FailureKind.CONTENT_FILTERED: Rule(unsuited=True),
    FailureKind.UNSUPPORTED: Rule(unsuited=True),
    FailureKind.CONFLICT: Rule(retries=1, spends=True),
    # One provider may refuse what others accept, in words that we don't recognize, and for all of its models. If two
    # refuse it, the request is wrong.
    FailureKind.INVALID_REQUEST: Rule(unsuited=True, max_failures=MAX_MODELS, max_providers=2),
    FailureKind.LOCAL: Rule(retries=2),
    FailureKind.CANCELLED: Rule(),
}
SPENDING = frozenset(kind.value for kind, rule in RULES.items() if rule.spends)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the worker does with the job (`action` after `delay_s`), and with the endpoint (the rest)."""

    action: Next
    delay_s: float = 0.0
    cooldown_s: float = 0.0
    """Cooldown of `scope`; 0: none."""
    scope: Scope = Scope.ENDPOINT
    """What is cooled down or disabled."""
    disable: bool = False
    counts_for_health: bool = False
    spends_attempt: bool = False
    unsuited: bool = False
    """Never offer this endpoint to this job again."""


class History(NamedTuple):
    """The earlier calls of a job, as they bear on the verdict on its next one."""

    attempt: int = 1
    """Number of this call among those that spent an attempt."""
    calls: int = 1
    """The same, counting probes."""
    same_failures: int = 0
    """Earlier calls that failed in the same way."""
    other_providers: int = 0
    """Other providers at which they failed."""
    retries_here: int = 0
    """Retries of this endpoint so far."""


FIRST_CALL = History()


def judge(
    failure: Failure | None,
    rng: random.Random,
    history: History = FIRST_CALL,
    *,
    probe: bool = False,
    may_retry: bool = True,
    has_untried: bool = True,
    allow_fallback: bool = True,
) -> Verdict:
    """The verdict on one call. failure: None for a success.

    probe: the call was to find out whether its endpoint is back.
    may_retry: whether a retry is worth it, and the worker's `Allowance` for retries has one available.
    has_untried: whether an eligible endpoint is left that this job hasn't tried in this round.
    """
    if failure is None:
        return Verdict(Next.FINISH, counts_for_health=True)
    rule, (attempt, calls, same_failures, other_providers, retries_here) = RULES[failure.kind], history
    retry_after_s = failure.retry_after_s or None  # 0 names no time: the next call would be refused, too
    cooldown_s = retry_after_s or 0.0
    if rule.cooldown_s is not None and (retry_after_s is None or failure.kind is FailureKind.QUOTA_EXHAUSTED):
        cooldown_s = max(cooldown_s, rule.cooldown_s)
    cooldown_s += min(0.1 * cooldown_s, MAX_JITTER_S) * rng.random()  # later than asked, and not all workers at once

    spends = rule.spends and not probe

    def verdict(action: Next, delay_s: float = 0.0) -> Verdict:
        return Verdict(action, delay_s, cooldown_s, failure.scope, rule.disables, rule.counts, spends, rule.unsuited)

    if same_failures + 1 >= rule.max_failures or other_providers + 1 >= rule.max_providers:
        return verdict(Next.GIVE_UP)
    if (spends and attempt >= MAX_ATTEMPTS) or (rule.spends and calls >= MAX_CALLS):
        return verdict(Next.GIVE_UP)
    if failure.kind is FailureKind.CANCELLED:
        return verdict(Next.DEFER)
    soon = retry_after_s is None or retry_after_s <= SHORT_WAIT_S
    if rule.waits and retry_after_s is not None and soon and retries_here == 0:
        return verdict(Next.RETRY, cooldown_s)
    repeats = retries_here < rule.retries and may_retry and failure.repeatable
    if repeats and soon:
        return verdict(Next.RETRY, max(cooldown_s, backoff_s(retries_here + 1, rng)))
    if failure.kind is FailureKind.LOCAL:
        return verdict(Next.DEFER, backoff_s(max(retries_here + 1, same_failures - RESTS_AFTER), rng, MAX_REST_S))
    if not allow_fallback:  # a cooldown isn't a failure: the one endpoint that may be used is waited for
        waits = rule.cooldown_s is not None or (repeats and same_failures < rule.retries)
        return verdict(Next.DEFER, _rest_s(rule, history, probe, cooldown_s, rng)) if waits else verdict(Next.GIVE_UP)
    if has_untried:
        return verdict(Next.FAIL_OVER, backoff_s(attempt - 1, rng))
    if rule.unsuited:
        return verdict(Next.GIVE_UP)
    return verdict(Next.DEFER, _rest_s(rule, history, probe, cooldown_s, rng))


def _rest_s(rule: Rule, history: History, probe: bool, cooldown_s: float, rng: random.Random) -> float:
    """How long a deferred job is parked."""
    if probe or rule.cooldown_s is not None:
        rests = (history.calls if probe else history.same_failures) - RESTS_AFTER
        return max(cooldown_s, backoff_s(rests, rng, MAX_REST_S))
    return max(cooldown_s, backoff_s(history.attempt, rng))


def attempts_spent(failures: Iterable[str | None]) -> int:
    """How many of a job's calls, by how they failed, spent an attempt, counting probes."""
    return sum(failure in SPENDING for failure in failures)


def backoff_s(failures: int, rng: random.Random, max_s: float = MAX_BACKOFF_S) -> float:
    """Wait after this many failures: none after 0, then 0.25 · 2ⁿ up to `max_s`, between half and all of it."""
    if failures <= 0:
        return 0.0
    return min(max_s, BACKOFF_S * 2.0**failures) * (0.5 + 0.5 * rng.random())
