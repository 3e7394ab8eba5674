"""Fair shares of the rate limits: a tenant that has had more than its share leaves some room to the others.

What it leaves goes to those who have had less, so that with more work than room all come to have equally much,
and a tenant with little work finds room at any time. While one tenant is alone, it may use all there is.
"""

from __future__ import annotations

import math

LEFT_TO_OTHERS = 0.1
"""Of each limit; little is enough, for while others want more, it is theirs each time that room appears."""
ACTIVE_S = 60.0
"""A tenant takes part for this long after its last job, and what it had is forgotten at this pace."""


class TenantShares:
    """What each tenant had of late, as one worker sees it: a sample that is as good as the whole."""

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
        return 1.0 if alone or _left(self._had[tenant], now) <= fair else 1 - LEFT_TO_OTHERS


def _left(had: tuple[float, float], now: float) -> float:
    calls, at = had
    return calls * math.exp(min(0.0, at - now) / ACTIVE_S)
