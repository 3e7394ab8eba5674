"""The calls that this process makes at each endpoint, of which overdue ones are cut short."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType

from turnout_workers.providers.errors import ProviderError
from turnout_workers.routing.failure import Billed, Failure, FailureKind


@dataclass(slots=True, eq=False)
class _Call:
    """One call, under way while its block runs. Not a generator, which takes more memory: thousands wait at a time."""

    overdue_at: float
    task: asyncio.Task[object]
    calls: set[_Call]
    """All that are under way to its endpoint, this one among them."""
    cut: bool = False
    """It was cut short, by cancelling its task …"""
    cancelled: int = 0
    """… which somebody else had cancelled so many times before."""

    def __enter__(self) -> None:
        self.calls.add(self)
        self.cancelled = self.task.cancelling()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.calls.discard(self)
        # Make a failure of our own cancellation; a task that somebody else has cancelled as well stays cancelled.
        if self.cut and self.task.uncancel() <= self.cancelled and isinstance(error, asyncio.CancelledError):
            told = "cut short: overdue, and its endpoint is out"
            raise ProviderError(Failure(FailureKind.TIMED_OUT, told, Billed.MAYBE)) from None


class UnderWay:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._calls: dict[str, set[_Call]] = defaultdict(set)

    def call(self, endpoint_id: str, overdue_s: float) -> AbstractContextManager[None]:
        """Make a call in this block. Raises ProviderError (timed out) if it is cut short."""
        task = asyncio.current_task()
        assert task is not None
        return _Call(self._clock() + overdue_s, task, self._calls[endpoint_id])

    def cut_short(self, endpoint_ids: Collection[str]) -> int:
        """End the calls to these endpoints that are overdue, and no others; tells how many."""
        overdue = [call for endpoint_id in endpoint_ids for call in self._overdue(endpoint_id)]
        for call in overdue:
            call.cut = True
            call.task.cancel()
        return len(overdue)

    def overdue(self) -> Counter[str]:
        """How many calls are overdue, by endpoint."""
        return +Counter({endpoint_id: len(self._overdue(endpoint_id)) for endpoint_id in self._calls})

    def _overdue(self, endpoint_id: str) -> list[_Call]:
        now = self._clock()
        calls = self._calls.get(endpoint_id, ())
        return [call for call in calls if call.overdue_at <= now and not call.cut]
