"""One leased call to a provider: made within its deadlines, checked against its schema, reported if cancelled."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass

from turnout.request import InferenceResponse
from turnout.uninterrupted import deliver_cancellation_later, deliver_cancellation_now
from turnout_workers.attempts.job import HeldJob, Job
from turnout_workers.attempts.reporting import STOPPED, UNSENT, Finished, Reporter
from turnout_workers.attempts.schema import off_schema
from turnout_workers.attempts.streaming import Pieces
from turnout_workers.background.fleet_watch import CallWatch
from turnout_workers.background.heartbeat import Hold
from turnout_workers.background.tasks import PAUSED_S
from turnout_workers.providers.base import CloudProviderBase, Timeouts
from turnout_workers.providers.errors import ProviderError, broken
from turnout_workers.routing.decision import Candidate
from turnout_workers.routing.failure import Billed, Failure, FailureKind
from turnout_workers.state.snapshot import SnapshotPoller
from turnout_workers.state.store import Granted, ObservedLimit

IDLE_S = 30.0
"""Longest pause of a provider between two bytes of its answer."""
LATE_S = 0.1
"""A call is cut off this long after its deadline, so that a connector that keeps the deadline can say what was late."""
TIMED_OUT = Failure(FailureKind.TIMED_OUT, "no answer in time", Billed.MAYBE)
"""The call's deadline passed, or the call was overdue and its endpoint was ejected."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Makes the calls that were granted, any number at a time.

    Workers, whose jobs are held, trust no connector. In process the connectors are the caller's own, so their errors
    are raised.
    """

    fleet: SnapshotPoller
    reporter: Reporter
    watch: CallWatch
    connector: Callable[[str], CloudProviderBase | None]
    """By endpoint id."""

    async def call(self, job: Job, chosen: Candidate, grant: Granted, pieces: Pieces | None = None) -> Finished:
        """Make the call. If it is cancelled, it is reported and noted in the job here, because nothing is returned.

        pieces: where the answer is streamed to, if it is.
        """
        held = job if isinstance(job, HeldJob) else None
        lease_id, endpoint, leases = grant.lease_id, chosen.endpoint, held.hold.leases if held else []
        leases.append(lease_id)
        started_at, clock = self.fleet.now(), self.fleet.monotonic()
        response: InferenceResponse | None = None
        limits: tuple[ObservedLimit, ...] = ()
        if_cancelled, due_at = UNSENT, math.inf
        try:
            if held:
                await _still_held(held.hold)
            connector = self.connector(endpoint.id)
            if connector is None:  # taken out since it was chosen
                raise ProviderError(Failure(FailureKind.LOCAL, f"{endpoint.id} is no longer configured"))
            timeouts = self._timeouts(job, chosen)
            streamed = () if pieces is None else (pieces,)
            if pieces is not None:
                await pieces.begin()
            if_cancelled, due_at = STOPPED, self.fleet.monotonic() + timeouts.total_s + LATE_S
            async with asyncio.timeout(timeouts.total_s + LATE_S) as limit:
                with self.watch.call(endpoint.id, chosen.overdue_s, limit):
                    outcome = await connector.call(endpoint, job.request, timeouts, *streamed)
                    if not isinstance(outcome.response, InferenceResponse):
                        raise TypeError(f"the connector of {endpoint.id} returned no InferenceResponse")
            response, limits = outcome.response, outcome.limits
            failure = off_schema(job.request, response)
            if pieces is not None:
                await _ended(pieces)
        except ProviderError as error:
            failure, response, limits = error.failure, error.response, error.limits
        except TimeoutError:
            failure = TIMED_OUT
        except (Exception, asyncio.CancelledError) as error:
            if not held or isinstance(error, asyncio.CancelledError):
                call = Finished(lease_id, chosen, started_at, self._since(clock), None, if_cancelled)
                job.progress.attempts += (call.attempt,)
                await self.reporter.stop(call)
                raise
            failure = broken("connector", endpoint.id, error, Billed.MAYBE)
        finally:
            leases.remove(lease_id)
        late = self._since(due_at) > PAUSED_S
        return Finished(lease_id, chosen, started_at, self._since(clock), response, failure, limits, late)

    def _since(self, clock: float) -> float:
        return max(0.0, self.fleet.monotonic() - clock)  # a router's clock is the wall clock, which may be set back

    def _timeouts(self, job: Job, chosen: Candidate) -> Timeouts:
        longest_s = chosen.timeout_s
        if job.deadline is not None:  # later, the answer is useless
            longest_s = min(longest_s, max(0.01, job.deadline - self.fleet.now()))
        return Timeouts(first_byte_s=longest_s, idle_s=min(IDLE_S, longest_s), total_s=longest_s)


async def _ended(pieces: Pieces) -> None:
    """Wait until all is written. A cancellation is delivered later: first, what is paid for is kept."""
    try:
        await pieces.end()
    except asyncio.CancelledError:
        deliver_cancellation_later()


async def _still_held(hold: Hold) -> None:
    """Raises CancelledError if the job was lost or cancelled while its call was admitted."""
    if asyncio.get_running_loop().time() >= hold.valid_until:
        hold.lose()  # paused or cut off for longer than the lease: another worker may have the job
    if hold.lost:  # a second call has its own task, which the job's task cancels
        await asyncio.sleep(0)
    await deliver_cancellation_now()
