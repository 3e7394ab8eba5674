"""What to do after a call: finish, retry there, fail over, defer or give up. The one table of failures.

Retry: the same endpoint again, unless another is better by now. Fail over: another one, which spends no retry. Defer:
nothing is to be done now; the job is parked and no attempt is spent. While an endpoint remains that this job hasn't
tried, none is tried twice, save in place: what `Rule.retries` and `Rule.waits` allow.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from turnout_workers.routing.failure import Failure, FailureKind, Scope

MAX_ATTEMPTS = 8
"""Attempts that a job may spend before it fails. Waiting, cooldowns and refused connections spend none, nor does a
probe: that its endpoint is out was known before."""
MAX_CALLS = 64
"""So many of them with its probes: a job may break every endpoint, and be alone to find out whether one is back."""
MAX_MODELS = 16
"""Where one provider may refuse a job at all of its models and another take it: so many, as some have hundreds."""
SHORT_WAIT_S = 2.0
"""A Retry-After up to this is waited for in place."""
COOLDOWN_S = 5.0
"""Cooldown after a 429 that names no time."""
QUOTA_COOLDOWN_S = 3600.0
"""Least cooldown of a quota that refills once a day."""
BACKOFF_S = 0.25
MAX_BACKOFF_S = 8.0
MAX_REST_S = 120.0
"""A job that only finds out, again and again, that an endpoint is out or over its limit, or this machine at its own,
leaves that to other jobs, for twice as long each time, up to this …"""
RESTS_AFTER = 4
"""… after so many calls; so in an outage of hours none comes to its last call, while there are others."""


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
    """How often the same endpoint is tried again first, unless it asks for more than `SHORT_WAIT_S`."""
    waits: bool = False
    """A Retry-After of at most `SHORT_WAIT_S` is waited for, and the same endpoint tried again."""
    cooldown_s: float | None = None
    """Least cooldown; None: only as told by Retry-After."""
    counts: bool = False
    """Counts against the endpoint's health."""
    spends: bool = False
    """Spends one of the job's attempts, so that a job which breaks every endpoint ends."""
    disables: bool = False
    """Takes the endpoint or its account out until an operator or a health check brings it back."""
    unsuited: bool = False
    """This endpoint can't do this job, now or later; when none is left the job fails."""
    most: float = math.inf
    """The job fails when this many of its calls have failed in this way."""
    most_providers: float = math.inf
    """The job fails when this many providers have failed it in this way, each of them by whichever models."""


RULES: dict[FailureKind, Rule] = {
    FailureKind.RATE_LIMITED: Rule(waits=True, cooldown_s=COOLDOWN_S),
    FailureKind.QUOTA_EXHAUSTED: Rule(cooldown_s=QUOTA_COOLDOWN_S),
    # One 503 or refused connection is no reason to shun an endpoint for seconds: the breaker, which sees all
    # workers' calls, decides. A Retry-After is believed at once.
    FailureKind.OVERLOADED: Rule(counts=True),
    FailureKind.UNAVAILABLE: Rule(counts=True),
    FailureKind.TIMED_OUT: Rule(counts=True, spends=True),
    FailureKind.INTERRUPTED: Rule(counts=True, spends=True),
    FailureKind.SERVER_ERROR: Rule(counts=True, spends=True, retries=1),
    FailureKind.MALFORMED: Rule(counts=True, spends=True),
    # A broken endpoint gives such answers, and so does a model that has nothing to say.
    FailureKind.EMPTY: Rule(counts=True, spends=True, most=3),
    FailureKind.OFF_SCHEMA: Rule(spends=True, retries=1),
    FailureKind.UNAUTHORIZED: Rule(disables=True),
    FailureKind.BILLING: Rule(disables=True),
    # A check may find nothing wrong with the key, for it was the prompt that was refused: so that such a job doesn't
    # take account after account from all others for ever.
    FailureKind.FORBIDDEN: Rule(disables=True, most=MAX_MODELS),
    FailureKind.MODEL_NOT_FOUND: Rule(disables=True),
    FailureKind.CONTEXT_LENGTH: Rule(unsuited=True),
    FailureKind.CONTENT_FILTERED: Rule(unsuited=True),
    FailureKind.UNSUPPORTED: Rule(unsuited=True),
    FailureKind.CONFLICT: Rule(retries=1, spends=True),
    # One provider may refuse what others take, in words that nobody has met yet, and for all of its models; where two
    # do, it is the request.
    FailureKind.INVALID_REQUEST: Rule(unsuited=True, most=MAX_MODELS, most_providers=2),
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
    """Cooldown of the endpoint, or of its account; 0: none."""
    scope: Scope = Scope.ENDPOINT
    """Of the cooldown, or of being disabled."""
    disable: bool = False
    counts_for_health: bool = False
    spends_attempt: bool = False
    unsuited: bool = False
    """Never offer this endpoint to this job again."""


def judge(
    failure: Failure | None,
    rng: random.Random,
    *,
    attempt: int = 1,
    calls: int = 1,
    probe: bool = False,
    alike: int = 0,
    elsewhere: int = 0,
    retries_here: int = 0,
    may_retry: bool = True,
    has_untried: bool = True,
    allow_fallback: bool = True,
) -> Verdict:
    """The verdict on one call. `failure`: None for a success.

    attempt: number of this call among those of this job that spent an attempt, from 1. calls: among those, too, that
    would have, but for being probes. probe: it was to find out whether its endpoint is back.
    alike: how many calls of this job have failed in the same way before. elsewhere: at how many other providers.
    retries_here: how often this endpoint was called again in place already.
    may_retry: whether a retry is worth it, and the worker's `Allowance` for them has something left.
    has_untried: whether an eligible endpoint is left that this job has not tried in this round.
    """
    if failure is None:
        return Verdict(Next.FINISH, counts_for_health=True)
    rule = RULES[failure.kind]
    retry_after_s = failure.retry_after_s or None  # 0 names no time either: the next call would be refused, too
    cooldown_s = retry_after_s or 0.0
    if rule.cooldown_s is not None and (retry_after_s is None or failure.kind is FailureKind.QUOTA_EXHAUSTED):
        cooldown_s = max(cooldown_s, rule.cooldown_s)
    cooldown_s *= 1 + 0.1 * rng.random()  # after the time that was named, and not all workers at once

    spends = rule.spends and not probe

    def ruled(action: Next, delay_s: float = 0.0) -> Verdict:
        return Verdict(action, delay_s, cooldown_s, failure.scope, rule.disables, rule.counts, spends, rule.unsuited)

    if alike + 1 >= rule.most or elsewhere + 1 >= rule.most_providers:
        return ruled(Next.GIVE_UP)
    if (spends and attempt >= MAX_ATTEMPTS) or (rule.spends and calls >= MAX_CALLS):
        return ruled(Next.GIVE_UP)
    if failure.kind is FailureKind.CANCELLED:
        return ruled(Next.DEFER)
    soon = retry_after_s is None or retry_after_s <= SHORT_WAIT_S
    if rule.waits and retry_after_s is not None and soon and retries_here == 0:
        return ruled(Next.RETRY, cooldown_s)
    repeats = retries_here < rule.retries and may_retry and failure.repeatable
    if repeats and soon:
        return ruled(Next.RETRY, max(cooldown_s, backoff_s(retries_here + 1, rng)))
    if failure.kind is FailureKind.LOCAL:
        return ruled(Next.DEFER, backoff_s(max(retries_here + 1, alike - RESTS_AFTER), rng, MAX_REST_S))
    if probe or rule.cooldown_s is not None:
        rest_s = backoff_s((calls if probe else alike) - RESTS_AFTER, rng, MAX_REST_S)
    else:
        rest_s = backoff_s(attempt, rng)
    rest_s = max(cooldown_s, rest_s)
    if not allow_fallback:  # a cooldown is no failure: the one endpoint that may be used is waited for
        waits = rule.cooldown_s is not None or (repeats and alike < rule.retries)
        return ruled(Next.DEFER, rest_s) if waits else ruled(Next.GIVE_UP)
    if has_untried:
        return ruled(Next.FAIL_OVER, backoff_s(attempt - 1, rng))
    if rule.unsuited:
        return ruled(Next.GIVE_UP)
    return ruled(Next.DEFER, rest_s)


def spending(failures: Iterable[str | None]) -> int:
    """How many of a job's calls, by how they failed, have spent an attempt, or would have, but for being probes."""
    return sum(failure in SPENDING for failure in failures)


def backoff_s(failures: int, rng: random.Random, most_s: float = MAX_BACKOFF_S) -> float:
    """Wait after so many failures: none after 0, then 0.25 · 2ⁿ up to 8 s, between half and all of it."""
    if failures <= 0:
        return 0.0
    return min(most_s, BACKOFF_S * 2.0**failures) * (0.5 + 0.5 * rng.random())
