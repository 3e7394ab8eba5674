"""The calls that this worker has under way, so that those which hang can be cut short, and their jobs move on."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Collection
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from types import TracebackType

from turnout_workers.providers.errors import ProviderError
from turnout_workers.routing.failure import Billed, Failure, FailureKind


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    """A class and no generator: thousands of them wait at a time."""

    overdue_at: float
    """On the loop's clock."""
    deadline: asyncio.Timeout
    others: set[_Call]
    """Of its endpoint, itself among them while it is under way."""

    async def __aenter__(self) -> None:
        self.others.add(self)
        await self.deadline.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.others.discard(self)
        try:
            await self.deadline.__aexit__(kind, error, trace)
        except TimeoutError:
            told = "cut short: overdue, and its endpoint is out"
            raise ProviderError(Failure(FailureKind.TIMED_OUT, told, Billed.MAYBE)) from None


class CallsUnderWay:
    def __init__(self) -> None:
        self._calls: dict[str, set[_Call]] = defaultdict(set)

    def call(self, endpoint_id: str, overdue_s: float) -> AbstractAsyncContextManager[None]:
        """Make a call in this block. Raises ProviderError (timed out) if it is cut short."""
        overdue_at = asyncio.get_running_loop().time() + overdue_s
        return _Call(overdue_at, asyncio.timeout(None), self._calls[endpoint_id])

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
