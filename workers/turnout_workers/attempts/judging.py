"""A call that admission has granted, and what follows from it: the same for workers and for the router in process."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, replace

from turnout.request import InferenceRequest
from turnout.uninterrupted import uninterrupted
from turnout_workers.attempts.hedging import Admit, Call, Permit, race
from turnout_workers.attempts.job import Job
from turnout_workers.attempts.reporting import Finished, Reporter
from turnout_workers.attempts.schema import unmended
from turnout_workers.monitoring import logs
from turnout_workers.routing.allowance import Allowance
from turnout_workers.routing.decision import Candidate, Decision, worth_retrying
from turnout_workers.routing.failover import History, Next, Verdict, attempts_spent, judge
from turnout_workers.routing.failure import FailureKind
from turnout_workers.state.store import Granted

RETRY_SHARE = 0.1
"""The most repeated calls of a process, as a share of its calls …"""
RETRY_RESERVE = 10
"""… and besides so many."""
HEDGE_SHARE = 0.03
"""The most second calls of a process, as a share of its calls."""


@dataclass(frozen=True, slots=True)
class Judged:
    """How it went."""

    call: Finished
    """The one that counts: which was answered, or else failed last."""
    verdict: Verdict
    """On that call. A retry is taken from the allowance already, so it is to be made."""
    reports: Sequence[asyncio.Future[None]]
    """Under way to the fleet's store."""

    async def told(self) -> None:
        """Returns when the fleet's store knows, and not before."""
        for report in self.reports:
            await uninterrupted(report)


class Judge:
    """Says which granted calls may be followed by a second one, and judges how they went."""

    def __init__(self, reporter: Reporter, rng: random.Random, hedge: bool) -> None:
        self._reporter = reporter
        self._rng = rng
        self._hedges = hedge
        self._retries = Allowance(RETRY_SHARE, RETRY_RESERVE)
        self._second_calls = Allowance(HEDGE_SHARE, reserve=1)

    def permit(
        self, job: Job, decision: Decision, candidates: Sequence[Candidate], grant: Granted, *, alone: bool = False
    ) -> Permit:
        """The candidate that was granted, as a call about to be made: it earns its share of repeated and second calls.

        alone: no second call, however slow this one is, as for an answer that somebody reads while it comes.
        """
        self._retries.deposit()
        self._second_calls.deposit()
        chosen = next(c for c in candidates if c.endpoint.id == grant.endpoint_id)
        if job.again not in (None, grant.endpoint_id):  # by now another is better, or that one is out
            job.repeat(None)
            job.progress.failovers += 1
        hedge = decision.hedge(chosen) if self._hedges and not alone else None
        return Permit(chosen, grant, hedge, decision.untried)

    def made(self, permit: Permit, admit: Admit, call: Call) -> Awaitable[Finished | list[Finished]]:
        """Make it, and where that may pay a second one: for `__call__`.

        No coroutine, for it would wait with the call. Thousands do at a time, and need no way to a second one.
        """
        if permit.hedge is None:
            return call(permit.chosen, permit.grant)
        return race(permit, permit.hedge, self._second_calls, admit, call)

    def __call__(self, job: Job, permit: Permit, made: Finished | list[Finished]) -> Judged:
        """Note in the job how it went. made: what ended by itself; of several calls the one that counts last."""
        calls = [made] if isinstance(made, Finished) else made
        request, progress = job.request, job.progress
        constraints, reports = request.constraints, []
        called = {ended.chosen.endpoint.id for ended in calls}
        for ended in calls:
            provider = ended.chosen.endpoint.provider
            logs.at_attempt(ended.lease_id, provider)
            kind = ended.failure and ended.failure.kind
            failed_so = [attempt.provider for attempt in progress.attempts if attempt.failure == kind]
            history = History(
                attempt=progress.spent_attempts + 1,
                calls=attempts_spent(attempt.failure for attempt in progress.attempts) + 1,
                same_failures=len(failed_so),
                other_providers=len({*failed_so} - {provider}),
                retries_here=job.retries_here,
            )
            verdict = judge(
                ended.failure,
                self._rng,
                history,
                probe=permit.grant.probe and ended.lease_id == permit.grant.lease_id,
                may_retry=self._retries.available and worth_retrying(ended.chosen, constraints.lane),
                has_untried=not called.issuperset(permit.untried),
                allow_fallback=constraints.allow_fallback,
            )
            if _says_nothing(ended, request):
                verdict = replace(verdict, counts_for_health=False)
            reports.append(asyncio.ensure_future(self._reporter.report(ended, verdict)))
            progress.note(ended.attempt, spends=verdict.spends_attempt, unsuited=verdict.unsuited)
        if ended.failure is not None and unmended(request, progress.attempts):
            verdict = replace(verdict, action=Next.GIVE_UP)
        if repeats := verdict.action is Next.RETRY:
            self._retries.withdraw()
        job.repeat(ended.chosen.endpoint.id if repeats else None)
        return Judged(ended, verdict, reports)


def _says_nothing(call: Finished, request: InferenceRequest) -> bool:
    """Whether it timed out and the endpoint is none the worse: the job's own limit of time, or its deadline, ended the
    call before an answer was due, or this process was paused."""
    if call.failure is None or call.failure.kind is not FailureKind.TIMED_OUT:
        return False
    constraints = request.constraints
    limited = any(limit is not None for limit in (request.timeout_s, constraints.deadline, constraints.deadline_s))
    return call.late or (limited and call.duration_s < call.chosen.latency_s)
