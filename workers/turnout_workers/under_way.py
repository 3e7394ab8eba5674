"""The calls that this worker has under way, so that those which hang can be cut short, and their jobs move on."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass

from turnout_workers.providers.errors import ProviderError
from turnout_workers.routing.failure import Billed, Failure, FailureKind


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    overdue_at: float
    """On the loop's clock."""
    deadline: asyncio.Timeout


class CallsUnderWay:
    def __init__(self) -> None:
        self._calls: dict[str, set[_Call]] = defaultdict(set)

    @asynccontextmanager
    async def call(self, endpoint_id: str, overdue_s: float) -> AsyncIterator[None]:
        """Make a call in this block. Raises ProviderError (timed out) if it is cut short."""
        deadline = asyncio.timeout(None)
        call = _Call(asyncio.get_running_loop().time() + overdue_s, deadline)
        self._calls[endpoint_id].add(call)
        try:
            async with deadline:
                yield
        except TimeoutError:
            if not deadline.expired():
                raise
            told = "cut short: overdue, and its endpoint is out"
            raise ProviderError(Failure(FailureKind.TIMED_OUT, told, Billed.MAYBE)) from None
        finally:
            self._calls[endpoint_id].discard(call)

    def cut_short(self, endpoint_ids: Collection[str]) -> int:
        """End the calls to these endpoints that are overdue, and no others; tells how many."""
        now = asyncio.get_running_loop().time()
        overdue = [
            call
            for endpoint_id in endpoint_ids
            for call in self._calls.get(endpoint_id, ())
            if call.overdue_at <= now and not call.deadline.expired()
        ]
        for call in overdue:
            call.deadline.reschedule(now)
        return len(overdue)
