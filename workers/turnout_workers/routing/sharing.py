"""What a job leaves of the rate limits to others: to more urgent lanes, to other tenants, and to those that wait."""

from __future__ import annotations

import math
from collections.abc import Mapping

from turnout.request import Lane

RESERVED = {Lane.INTERACTIVE: 0.0, Lane.STANDARD: 0.10, Lane.BATCH: 0.35}
"""Share of every rate limit that a lane leaves to the more urgent ones …"""
RESERVED_FOR_S = 60.0
"""… if there was one of their jobs within this time: a batch alone may use all there is."""

LONG_WAIT_S = {Lane.INTERACTIVE: 30.0, Lane.STANDARD: 300.0, Lane.BATCH: 3600.0}
"""After so long without room, a job has some kept for it: others wait for a large one, up to a minute."""
LANE_STRIDE_S = 1e10
"""More than any Unix time, so that the places of lanes don't mix."""

RESERVE_FOR_OTHERS = 0.1
"""Of each limit; little is enough, for while others want more, it is theirs each time that room appears."""
ACTIVE_S = 60.0
"""A tenant takes part for this long after its last job, and what it had is forgotten at this pace."""


def headroom(
    lane: Lane,
    last_seen: Mapping[Lane, float],
    now: float,
    reserved: Mapping[Lane, float] = RESERVED,
    within_s: float = RESERVED_FOR_S,
) -> float:
    """Share of each limit that a job of this lane may fill, by whether a more urgent one had a job `within_s`.

    last_seen: when each lane had a job, by the clock of `now`.
    """
    lanes = list(Lane)
    urgent = lanes[: lanes.index(lane)]
    contended = any(now - last_seen.get(other, -math.inf) < within_s for other in urgent)
    return 1 - reserved[lane] if contended else 1.0


def place(lane: Lane, waiting_since: float | None, now: float) -> tuple[float, bool]:
    """Of a job among all that want room, and whether it waits long enough for some to be kept, see `store.Ask`.

    By its lane, then by how long it waits; those that don't wait for long are all alike the last of their lane.
    """
    first = list(Lane).index(lane) * LANE_STRIDE_S
    if waiting_since is None or now - waiting_since < LONG_WAIT_S[lane]:
        return first + LANE_STRIDE_S / 2, False
    return first + waiting_since, True


class TenantShares:
    """What each tenant had of late, as one worker sees it: a sample that is as good as the whole.

    One that has had more than its share leaves some room to those who have had less, so that with more work than room
    all come to have equally much, and a tenant with little work finds room at any time. While one tenant is alone, it
    may use all there is.
    """

    def __init__(self) -> None:
        self._had: dict[str, tuple[float, float]] = {}
        """Calls, decayed, and when they were last counted."""
        self._all = (0.0, 0.0)
        self._looked_at = -math.inf

    def seen(self, tenant: str, now: float, calls: int = 0) -> None:
        """A job of it was claimed, or was granted so many calls."""
        self._had[tenant] = (_left(self._had.get(tenant, (0.0, now)), now) + calls, now)
        self._all = (_left(self._all, now) + calls, now)

    def headroom(self, tenant: str, now: float) -> float:
        """Share of each limit that it may fill now, for a call of a job of it."""
        self.seen(tenant, now)  # its last job may be as old as the call that is to be repeated
        if now - self._looked_at >= 1:
            self._looked_at = now
            for name in [name for name, (_, at) in self._had.items() if now - at >= ACTIVE_S]:
                self._all = (_left(self._all, now) - _left(self._had.pop(name), now), now)
        fair = _left(self._all, now) / len(self._had)
        alone = len(self._had) == 1
        return 1.0 if alone or _left(self._had[tenant], now) <= fair else 1 - RESERVE_FOR_OTHERS


def _left(had: tuple[float, float], now: float) -> float:
    calls, at = had
    return calls * math.exp(min(0.0, at - now) / ACTIVE_S)
