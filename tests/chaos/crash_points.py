"""Points where a worker is killed, as when memory runs out, to show that nothing is lost."""

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
"""The last step of a worker before it dies at each point. None of them waits, so nothing else has begun by then."""


def lay(place: str, nth: int) -> None:
    """Make this process die when it reaches that point for the nth time."""
    kind, name = STEPS[place]
    step, times = getattr(kind, name), count(1)

    def reached() -> None:
        if next(times) == nth:
            os.kill(os.getpid(), signal.SIGKILL)

    @wraps(step)
    def last(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        if place == "during_call":
            asyncio.get_running_loop().call_later(0.05, reached)
        else:
            reached()
        return result

    setattr(kind, name, last)
