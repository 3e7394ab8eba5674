"""One leased call to a provider: made under its deadlines, held to its schema, reported here if it is cancelled."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from dataclasses import dataclass

from turnout.ledger import Coalescer, Ledger
from turnout.result import Attempt
from turnout_workers import crash_points
from turnout_workers.attempts.held import HeldJob
from turnout_workers.attempts.reporting import STOPPED, Finished, Reporter
from turnout_workers.attempts.schema import off_schema
from turnout_workers.attempts.streaming import Pieces
from turnout_workers.attempts.under_way import UnderWay
from turnout_workers.config.in_force import InForce
from turnout_workers.crash_points import reached
from turnout_workers.providers.base import CallOutcome, Timeouts
from turnout_workers.providers.errors import ProviderError
from turnout_workers.routing.decision import Candidate
from turnout_workers.routing.failure import Billed, Failure, FailureKind
from turnout_workers.state.snapshot import SnapshotPoller
from turnout_workers.state.store import Granted, ObservedLimit

logger = logging.getLogger(__name__)

IDLE_S = 30.0
"""Longest silence of a provider between two bytes of its answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calling:
    """Makes the calls that were granted, any number at a time."""

    ledger: Ledger
    send: Coalescer
    fleet: SnapshotPoller
    reporter: Reporter
    in_force: InForce
    under_way: UnderWay

    async def __call__(self, job: HeldJob, chosen: Candidate, grant: Granted, stopped: list[Attempt]) -> Finished:
        """Make the call. If it is cancelled, that is reported here, and the attempt added to `stopped`."""
        lease_id, endpoint, leases = grant.lease_id, chosen.endpoint, job.hold.leases
        leases.append(lease_id)
        started_at, clock = self.fleet.now(), time.monotonic()
        outcome: CallOutcome | None = None
        observed: tuple[ObservedLimit, ...] = ()
        try:
            if asyncio.get_running_loop().time() >= job.hold.valid_until:
                job.hold.lose()  # paused or cut off for longer than the lease: another worker may have the job
            if job.hold.lost or ((task := asyncio.current_task()) and task.cancelling()):
                await asyncio.sleep(0)  # it was cancelled while its call was admitted: that is raised here
            connector = self.in_force.connectors.get(endpoint.id)
            if connector is None:  # taken out since it was chosen
                raise ProviderError(Failure(FailureKind.LOCAL, f"{endpoint.id} is no longer configured"))
            pieces = self._pieces(job, lease_id) if job.claim.stream else None
            reached("before_call")
            if crash_points.awaited("during_call"):
                asyncio.get_running_loop().call_later(0.05, reached, "during_call")
            with self.under_way.call(endpoint.id, chosen.overdue_s):
                if pieces is not None:
                    await pieces.begin()
                outcome = await connector.call(endpoint, job.request, self._timeouts(job, chosen), pieces)
                if pieces is not None:
                    await pieces.end(outcome.response.text)
            failure = off_schema(job.request, outcome.response)
        except ProviderError as error:
            failure, observed = error.failure, error.limits
        except Exception as error:
            # A connector of another package that breaks its promise; what it says may hold anything.
            where = "".join(traceback.format_tb(error.__traceback__))
            logger.error("the connector of %s raised %s:\n%s", endpoint.id, type(error).__name__, where)
            message = f"its connector raised {type(error).__name__}"
            failure = Failure(FailureKind.MALFORMED, message, Billed.MAYBE)
        except asyncio.CancelledError:
            call = Finished(lease_id, chosen, started_at, time.monotonic() - clock, None, STOPPED)
            await self.reporter.stop(call, stopped)
            raise
        finally:
            leases.remove(lease_id)
        return Finished(lease_id, chosen, started_at, time.monotonic() - clock, outcome, failure, observed)

    def _timeouts(self, job: HeldJob, chosen: Candidate) -> Timeouts:
        longest_s = chosen.timeout_s
        if job.claim.deadline is not None:  # nobody wants the answer after it
            longest_s = min(longest_s, max(0.01, job.claim.deadline - self.fleet.now()))
        return Timeouts(first_byte_s=longest_s, idle_s=min(IDLE_S, longest_s), total_s=longest_s)

    def _pieces(self, job: HeldJob, lease_id: str) -> Pieces:
        return Pieces(self.ledger, self.send, job.id, lease_id, self.in_force.file.retention.results_s)
