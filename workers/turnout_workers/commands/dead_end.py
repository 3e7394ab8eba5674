"""When a run can't go on: all that could serve what is left of it refuses us, which only its user can mend.

With all providers down, jobs wait; they don't fail. But a key that is refused, an account without credit and a model
that isn't there stay so until somebody acts, and nobody looks at a run that was begun by cron.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Set

from turnout.errors import TurnoutError
from turnout.request import InferenceRequest
from turnout_workers.commands.file_options import refusal
from turnout_workers.config import Settings
from turnout_workers.config.credentials import key_locations
from turnout_workers.routing.fleet import Fleet

LEAST_S = 10.0
"""How long a run waits at least: a worker's first health check, which may find a better key good, takes up to 8 s."""


class DeadEnd(TurnoutError):
    """All that could serve what is left of a run refuses us."""


class DeadEndWatch:
    """Looks on while a run goes on."""

    def __init__(self, fleet: Fleet, settings: Settings, now: Callable[[], float] = time.monotonic) -> None:
        self._fleet, self._settings, self._now = fleet, settings, now
        self._disabled: Set[str] = frozenset()
        self._since = now()

    def look(self, disabled: Mapping[str, str], waiting: Iterable[InferenceRequest], answered: bool) -> None:
        """Raises DeadEnd if it can't go on.

        disabled: by endpoint id, why; without those that still have calls. waiting: what is in the queue.
        """
        # One that has answered may do so again: the workers' health checks have to ask it once more.
        patience_s = max(LEAST_S, 1.5 * self._settings.config.router.health_check_interval) if answered else LEAST_S
        if disabled.keys() != self._disabled:  # their words may differ each time, by a call's id, say
            self._disabled, self._since = disabled.keys(), self._now()
        if not disabled or self._now() - self._since < patience_s:
            return
        self._since = self._now()
        rest = Fleet(endpoint for endpoint in self._fleet.endpoints if endpoint.id not in disabled)
        unservable = (refusal(request, rest) is not None for request in waiting)
        if next(unservable, False) and all(unservable):
            raise DeadEnd(self._told(disabled))

    def _told(self, disabled: Mapping[str, str]) -> str:
        lines = {"nothing is left that can serve the remaining lines:": None}
        for endpoint in self._fleet.endpoints:
            if (why := disabled.get(endpoint.id)) is not None:
                keys = " or ".join(key_locations(self._settings.config.providers[endpoint.provider]))
                lines[f"  {endpoint.provider}{keys and f' (its key: {keys})'}: {why}"] = None
        return "\n".join(lines)
