"""The calls that this process makes at each endpoint, of which overdue ones are cut short."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class _Call:
    """One call, under way while its block runs. Not a generator, which takes more memory: thousands wait at a time."""

    overdue_at: float
    limit: asyncio.Timeout
    calls: set[_Call]
    """All that are under way to its endpoint, this one among them."""

    def __enter__(self) -> None:
        self.calls.add(self)

    def __exit__(self, *_: object) -> None:
        self.calls.discard(self)


class UnderWay:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._calls: dict[str, set[_Call]] = defaultdict(set)

    def call(self, endpoint_id: str, overdue_s: float, limit: asyncio.Timeout) -> AbstractContextManager[None]:
        """Make a call in this block. limit: of its time, and over at once if it is cut short."""
        return _Call(self._clock() + overdue_s, limit, self._calls[endpoint_id])

    def cut_short(self, endpoint_ids: Collection[str]) -> int:
        """End the calls to these endpoints that are overdue, and no others; tells how many."""
        overdue = [call for endpoint_id in endpoint_ids for call in self._overdue(endpoint_id)]
        for call in overdue:
            call.limit.reschedule(asyncio.get_running_loop().time())
            call.calls.discard(call)
        return len(overdue)

    def overdue(self) -> Counter[str]:
        """How many calls are overdue, by endpoint."""
        return +Counter({endpoint_id: len(self._overdue(endpoint_id)) for endpoint_id in self._calls})

    def _overdue(self, endpoint_id: str) -> list[_Call]:
        now = self._clock()
        return [call for call in self._calls.get(endpoint_id, ()) if call.overdue_at <= now]
