"""Notices that a run can't go on: every endpoint that could serve the rest refuses us, which only the user can fix.

With all providers down, jobs wait; they don't fail. But a refused key, an account without credit or a missing model
stays so until somebody acts, and a run that cron started would wait for ever.
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

MIN_WAIT_S = 10.0
"""Shortest wait before a run is given up: a worker's first health check, which may accept a better key, takes up to
8 s."""


class DeadEnd(TurnoutError):
    """Every endpoint that could serve the rest of a run refuses us."""


class DeadEndWatch:
    """Watches a run."""

    def __init__(self, fleet: Fleet, settings: Settings, now: Callable[[], float] = time.monotonic) -> None:
        self._fleet, self._settings, self._now = fleet, settings, now
        self._disabled: Set[str] = frozenset()
        self._since = now()

    def look(self, disabled: Mapping[str, str], waiting: Iterable[InferenceRequest], answered: bool) -> None:
        """Raises DeadEnd if the run can't go on.

        disabled: reasons by endpoint id, without endpoints that still have calls. waiting: the queued requests.
        """
        # An endpoint that has answered may recover: the workers' health checks must have checked it once more.
        wait_s = max(MIN_WAIT_S, 1.5 * self._settings.config.router.health_check_interval) if answered else MIN_WAIT_S
        if disabled.keys() != self._disabled:  # reasons may differ each time, for example by a call's id
            self._disabled, self._since = disabled.keys(), self._now()
        if not disabled or self._now() - self._since < wait_s:
            return
        self._since = self._now()
        rest = Fleet(endpoint for endpoint in self._fleet.endpoints if endpoint.id not in disabled)
        unservable = (refusal(request, rest) is not None for request in waiting)
        if next(unservable, False) and all(unservable):
            raise DeadEnd(self._message(disabled))

    def _message(self, disabled: Mapping[str, str]) -> str:
        lines = {"no endpoint is left that can serve the remaining lines:": None}
        for endpoint in self._fleet.endpoints:
            if (why := disabled.get(endpoint.id)) is not None:
                keys = " or ".join(key_locations(self._settings.config.providers[endpoint.provider]))
                lines[f"  {endpoint.provider}{keys and f' (its key: {keys})'}: {why}"] = None
        return "\n".join(lines)
