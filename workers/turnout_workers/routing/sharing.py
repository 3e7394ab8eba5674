"""How much of the rate limits a job leaves to more urgent lanes, to other tenants, and to jobs that wait."""

from __future__ import annotations

import math
from collections.abc import Mapping

from turnout.request import Lane

RESERVED = {Lane.INTERACTIVE: 0.0, Lane.STANDARD: 0.10, Lane.BATCH: 0.35}
"""Share of every rate limit that a lane leaves to more urgent lanes."""
RESERVED_FOR_S = 60.0
"""It is left only if one of their jobs came within this time: a batch alone may use everything."""

LONG_WAIT_S = {Lane.INTERACTIVE: 30.0, Lane.STANDARD: 300.0, Lane.BATCH: 3600.0}
"""After this long without room, room is kept for a job: for a large one, others wait up to a minute."""
LANE_STRIDE_S = 1e10
"""More than any Unix time, so that positions of different lanes don't mix."""

RESERVE_FOR_OTHERS = 0.1
"""Share of each limit. Little is enough: while other tenants want more, they get it each time that room appears."""
ACTIVE_S = 60.0
"""How long a tenant takes part after its last job, and the time constant with which its calls are forgotten."""


def headroom(
    lane: Lane,
    last_seen: Mapping[Lane, float],
    now: float,
    reserved: Mapping[Lane, float] = RESERVED,
    within_s: float = RESERVED_FOR_S,
) -> float:
    """Share of each limit that a job of this lane may fill, given whether a more urgent lane had a job `within_s`.

    last_seen: when each lane last had a job, on the clock of `now`.
    """
    lanes = list(Lane)
    urgent = lanes[: lanes.index(lane)]
    contended = any(now - last_seen.get(other, -math.inf) < within_s for other in urgent)
    return 1 - reserved[lane] if contended else 1.0


def waiting_position(lane: Lane, waiting_since: float | None, now: float) -> tuple[float, bool]:
    """(position, keeps_room): a sort key among all jobs that want room, and whether room is kept for this one.

    By lane, then by the longest wait; jobs that haven't waited long all come last in their lane. See `store.Ask`.
    """
    first = list(Lane).index(lane) * LANE_STRIDE_S
    if waiting_since is None or now - waiting_since < LONG_WAIT_S[lane]:
        return first + LANE_STRIDE_S / 2, False
    return first + waiting_since, True


class TenantShares:
    """The recent calls of each tenant, as one worker sees them: a sample that is as good as the whole.

    A tenant that had more than its share leaves some room to those that had less. So if there is more work than room,
    all get the same, and a tenant with little work always finds room. A tenant that is alone may use everything.
    """

    def __init__(self) -> None:
        self._calls: dict[str, tuple[float, float]] = {}
        """Decayed calls, and when they were last counted."""
        self._all_calls = (0.0, 0.0)
        self._dropped_at = -math.inf

    def count(self, tenant: str, now: float, calls: int = 0) -> None:
        """One of its jobs was claimed, or was granted this many calls."""
        self._calls[tenant] = (_decayed(self._calls.get(tenant, (0.0, now)), now) + calls, now)
        self._all_calls = (_decayed(self._all_calls, now) + calls, now)

    def headroom(self, tenant: str, now: float) -> float:
        """Share of each limit that a call for this tenant may fill now."""
        self.count(tenant, now)  # its last job may be as old as the call that is retried
        if now - self._dropped_at >= 1:
            self._dropped_at = now
            for name in [name for name, (_, at) in self._calls.items() if now - at >= ACTIVE_S]:
                self._all_calls = (_decayed(self._all_calls, now) - _decayed(self._calls.pop(name), now), now)
        fair = _decayed(self._all_calls, now) / len(self._calls)
        alone = len(self._calls) == 1
        return 1.0 if alone or _decayed(self._calls[tenant], now) <= fair else 1 - RESERVE_FOR_OTHERS


def _decayed(counted: tuple[float, float], now: float) -> float:
    calls, at = counted
    return calls * math.exp(min(0.0, at - now) / ACTIVE_S)
