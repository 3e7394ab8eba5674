"""A second call for an interactive job whose first one is slow: the first answer counts.

What the other call may have cost stays booked as unsure. Off unless the operator asks for it, and never more than a
small share of all calls: a fleet that is slow everywhere must not get twice the load.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from redis.exceptions import RedisError

from turnout.uninterrupted import deliver_cancellation_later, uninterrupted
from turnout_workers.attempts.reporting import Finished
from turnout_workers.routing.allowance import Allowance
from turnout_workers.routing.decision import Candidate, Hedge
from turnout_workers.state.store import Admission, Granted

Admit = Callable[[Sequence[Candidate]], Awaitable[Admission]]
MakeCall = Callable[[Candidate, Granted], Awaitable[Finished]]


@dataclass(frozen=True, slots=True)
class Permit:
    """A call that was granted. It keeps nothing of the snapshot by which it was chosen, because it may take long."""

    chosen: Candidate
    grant: Granted
    hedge: Hedge | None
    """When and where a second call may follow; None: no second call."""
    untried: tuple[str, ...]
    """See `Decision.untried`."""


async def race(permit: Permit, hedge: Hedge, allowance: Allowance, admit: Admit, make_call: MakeCall) -> list[Finished]:
    """Make the first call; if it is slow, and the allowance has one left, a second one elsewhere.

    Returns the calls that ended by themselves; the last one counts. A cancelled call reports itself.
    """
    running = {asyncio.ensure_future(make_call(permit.chosen, permit.grant))}
    ended: list[Finished] = []
    try:
        done, _ = await asyncio.wait(running, timeout=hedge.after_s)
        if not done and allowance.withdraw():
            admission: Admission | None = None
            with suppress(RedisError, OSError):  # the first call needs no Redis
                admission = await admit(hedge.candidates)
            if isinstance(admission, Granted):
                other = next(c for c in hedge.candidates if c.endpoint.id == admission.endpoint_id)
                running.add(asyncio.ensure_future(make_call(other, admission)))
                await asyncio.sleep(0)  # let it begin: a call that is cancelled before wouldn't report itself
        while running and not (ended and ended[-1].failure is None):
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            ended += _ended(done)
    except asyncio.CancelledError:
        ended += _ended(call for call in running if call.done())
        if not ended:
            raise
        deliver_cancellation_later()  # a call that has just ended counts first
    finally:
        left = [call for call in running if not call.done()]
        for one in left:
            one.cancel()
        await uninterrupted(asyncio.gather(*left, return_exceptions=True))
    return ended


def _ended(calls: Iterable[asyncio.Future[Finished]]) -> list[Finished]:
    return sorted((call.result() for call in calls), key=lambda one: one.failure is None)
