"""The calls that this process has under way: which are overdue, and how those are cut short, so that jobs move on."""

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
    """A class and no generator: thousands of them wait at a time."""

    overdue_at: float
    task: asyncio.Task[object]
    others: set[_Call]
    """Of its endpoint, itself among them while it is under way."""
    cut: bool = False
    cancelled: int = 0
    """Before: how often the task was."""

    def __enter__(self) -> None:
        self.others.add(self)
        self.cancelled = self.task.cancelling()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.others.discard(self)
        # A task that somebody else cancels besides stays cancelled.
        if self.cut and self.task.uncancel() <= self.cancelled and isinstance(error, asyncio.CancelledError):
            told = "cut short: overdue, and its endpoint is out"
            raise ProviderError(Failure(FailureKind.TIMED_OUT, told, Billed.MAYBE)) from None


class CallsUnderWay:
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
        """How many, by endpoint."""
        return +Counter({endpoint_id: len(self._overdue(endpoint_id)) for endpoint_id in self._calls})

    def _overdue(self, endpoint_id: str) -> list[_Call]:
        now = self._clock()
        calls = self._calls.get(endpoint_id, ())
        return [call for call in calls if call.overdue_at <= now and not call.cut]
