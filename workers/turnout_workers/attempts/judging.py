"""A call that admission granted, and what follows from it, for workers and for the router in process alike."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, replace

from turnout.request import InferenceRequest
from turnout.uninterrupted import uninterrupted
from turnout_workers.attempts.hedging import Admit, MakeCall, Permit, race
from turnout_workers.attempts.job import Job
from turnout_workers.attempts.reporting import Finished, Reporter
from turnout_workers.attempts.schema import repairs_used_up
from turnout_workers.monitoring import logs
from turnout_workers.routing.allowance import Allowance
from turnout_workers.routing.decision import Candidate, Decision, worth_retrying
from turnout_workers.routing.failover import History, Next, Verdict, attempts_spent, judge
from turnout_workers.routing.failure import FailureKind
from turnout_workers.state.store import Granted

RETRY_SHARE = 0.1
"""The most retries of a process, as a share of its calls."""
RETRY_RESERVE = 10
"""Retries that a process may make in addition."""
HEDGE_SHARE = 0.03
"""The most second calls of a process, as a share of its calls."""


@dataclass(frozen=True, slots=True)
class Judged:
    """How a granted call went."""

    call: Finished
    """The call that counts: the one that was answered, or else failed last."""
    verdict: Verdict
    """On that call. A retry must be made: it is already taken from the allowance."""
    reports: Sequence[asyncio.Future[None]]
    """Being sent to the fleet's store."""

    async def reports_delivered(self) -> None:
        """Wait until the fleet's store has the reports, even if cancelled."""
        for report in self.reports:
            await uninterrupted(report)


class Judge:
    """Starts granted calls, with a second one where that may pay, and judges how they went."""

    def __init__(self, reporter: Reporter, rng: random.Random, hedge: bool) -> None:
        self._reporter = reporter
        self._rng = rng
        self._hedges = hedge
        self._retries = Allowance(RETRY_SHARE, RETRY_RESERVE)
        self._second_calls = Allowance(HEDGE_SHARE, reserve=1)

    def permit(
        self, job: Job, decision: Decision, candidates: Sequence[Candidate], grant: Granted, *, alone: bool = False
    ) -> Permit:
        """The granted candidate as a call about to be made. It earns its share of retries and second calls.

        alone: no second call, however slow this one is; so for an answer that is streamed.
        """
        self._retries.deposit()
        self._second_calls.deposit()
        chosen = next(c for c in candidates if c.endpoint.id == grant.endpoint_id)
        if job.retry_endpoint not in (None, grant.endpoint_id):  # by now another is better, or that one is out
            job.set_retry(None)
            job.progress.failovers += 1
        hedge = decision.hedge(chosen) if self._hedges and not alone else None
        return Permit(chosen, grant, hedge, decision.untried)

    def start(self, permit: Permit, admit: Admit, make_call: MakeCall) -> Awaitable[Finished | list[Finished]]:
        """Make the call, and a second one where that may pay; the result is for `judge`.

        Not a coroutine, because that would wait along with each of thousands of calls.
        """
        if permit.hedge is None:
            return make_call(permit.chosen, permit.grant)
        return race(permit, permit.hedge, self._second_calls, admit, make_call)

    def judge(self, job: Job, permit: Permit, finished: Finished | list[Finished]) -> Judged:
        """Judge the calls that ended by themselves, of which the last one counts, and note them in the job."""
        calls = [finished] if isinstance(finished, Finished) else finished
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
            if _proves_nothing(ended, request):
                verdict = replace(verdict, counts_for_health=False)
            reports.append(asyncio.ensure_future(self._reporter.report(ended, verdict)))
            progress.note(ended.attempt, spends=verdict.spends_attempt, unsuited=verdict.unsuited)
        if ended.failure is not None and repairs_used_up(request, progress.attempts):
            verdict = replace(verdict, action=Next.GIVE_UP)
        if repeats := verdict.action is Next.RETRY:
            self._retries.withdraw()
        job.set_retry(ended.chosen.endpoint.id if repeats else None)
        return Judged(ended, verdict, reports)


def _proves_nothing(call: Finished, request: InferenceRequest) -> bool:
    """Whether the call timed out, but not because of the endpoint: the job's own timeout or deadline ended it before an
    answer was due, or this process was paused."""
    if call.failure is None or call.failure.kind is not FailureKind.TIMED_OUT:
        return False
    constraints = request.constraints
    limited = any(limit is not None for limit in (request.timeout_s, constraints.deadline, constraints.deadline_s))
    return call.late or (limited and call.duration_s < call.chosen.latency_s)
