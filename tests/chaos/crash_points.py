"""Places where a worker is made to die, as a lack of memory would kill it, to show that nothing is lost there."""

from __future__ import annotations

import asyncio
import os
import signal
from functools import wraps
from itertools import count
from typing import Any

from turnout_workers.attempts.judging import Judge
from turnout_workers.attempts.search import EndpointSearch
from turnout_workers.background.fleet_watch import CallWatch
from turnout_workers.monitoring.metrics import Metrics

STEPS: dict[str, tuple[type, str]] = {
    "claimed": (EndpointSearch, "learn_from"),
    "before_call": (CallWatch, "call"),
    "during_call": (CallWatch, "call"),
    "after_call": (Judge, "judge"),
    "after_settle": (Metrics, "ended"),
}
"""What a worker does last before it dies there. None of it waits, so nothing else has begun by then."""


def lay(place: str, nth: int) -> None:
    """Make this process die when it comes to that place for the nth time."""
    kind, name = STEPS[place]
    step, times = getattr(kind, name), count(1)

    def reached() -> None:
        if next(times) == nth:
            os.kill(os.getpid(), signal.SIGKILL)

    @wraps(step)
    def last(*told: Any, **named: Any) -> Any:
        result = step(*told, **named)
        if place == "during_call":
            asyncio.get_running_loop().call_later(0.05, reached)
        else:
            reached()
        return result

    setattr(kind, name, last)
