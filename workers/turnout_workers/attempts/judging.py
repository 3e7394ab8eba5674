"""A call that admission has granted, and what follows from it: the same for workers and for the router in process."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from turnout.request import InferenceRequest
from turnout.uncut import uncut
from turnout_workers.attempts.calling import Permit
from turnout_workers.attempts.progress import Job
from turnout_workers.attempts.reporting import Finished, Reporter
from turnout_workers.attempts.schema import unmended
from turnout_workers.routing.decision import Candidate, Decision, worth_repeating
from turnout_workers.routing.failover import Next, Verdict, judge
from turnout_workers.routing.failure import FailureKind
from turnout_workers.state.store import Granted

REPEATED_SHARE = 0.1
"""The most repeated calls of a process, as a share of its calls, lest they add to the load when much fails …"""
REPEATED_MORE = 10
"""… and besides so many."""


@dataclass(frozen=True, slots=True)
class Judged:
    """How it went."""

    call: Finished
    verdict: Verdict
    report: asyncio.Future[None]
    """Under way to the fleet's store."""

    async def told(self) -> None:
        """Returns when the fleet's store knows, and not before."""
        await uncut(self.report)


class Judging:
    """Says what follows from how calls went, and how many may be repeated."""

    def __init__(self, reporter: Reporter, rng: random.Random) -> None:
        self._reporter = reporter
        self._rng = rng
        self._repeats_left: float = REPEATED_MORE

    def permit(self, job: Job, decision: Decision, candidates: Sequence[Candidate], grant: Granted) -> Permit:
        """The candidate that was granted, as a call about to be made: it earns its share of repeated calls."""
        self._repeats_left = min(REPEATED_MORE, self._repeats_left + REPEATED_SHARE)
        chosen = next(c for c in candidates if c.endpoint.id == grant.endpoint_id)
        if job.again not in (None, grant.endpoint_id):  # by now another is better, or that one is out
            job.repeat(None)
            job.progress = job.progress.failed_over()
        return Permit(grant.lease_id, chosen, decision.leaves_untried(chosen))

    def __call__(self, job: Job, permit: Permit, call: Finished) -> Judged:
        """Note in the job how it went."""
        request, progress, failure, wish = job.request, job.progress, call.failure, job.request.constraints
        verdict = judge(
            failure,
            self._rng,
            attempt=progress.spent_attempts + 1,
            alike=sum(failure is not None and a.failure == failure.kind for a in progress.attempts),
            retries_here=job.retries_here,
            may_retry=self._repeats_left >= 1 and worth_repeating(permit.chosen, wish.lane),
            has_untried=permit.has_untried,
            allow_fallback=wish.allow_fallback,
        )
        if _cut_by_its_job(call, request):
            verdict = replace(verdict, counts_for_health=False)
        report = asyncio.ensure_future(self._reporter.report(call, verdict))
        job.progress = progress.after(call.attempt, spends=verdict.spends_attempt, unsuited=verdict.unsuited)
        if failure is not None and unmended(request, job.progress.attempts):
            verdict = replace(verdict, action=Next.GIVE_UP)
        repeats = verdict.action is Next.RETRY
        self._repeats_left -= repeats
        job.repeat(permit.chosen.endpoint.id if repeats else None)
        return Judged(call, verdict, report)


def _cut_by_its_job(call: Finished, request: InferenceRequest) -> bool:
    """Whether the job's own limit of time, or its deadline, ended the call before an answer was due, which says nothing
    about the endpoint."""
    wish = request.constraints
    return (
        call.failure is not None
        and call.failure.kind is FailureKind.TIMED_OUT
        and call.duration_s < call.chosen.latency_s
        and any(limit is not None for limit in (request.timeout_s, wish.deadline, wish.deadline_s))
    )
