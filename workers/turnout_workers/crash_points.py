"""Places where a worker can be told to die, so that tests can show that nothing is lost there.

`TURNOUT_CRASH=PLACE:N` kills the process, as a lack of memory would, the N-th time it comes to that place. Without the
variable, `reached` does nothing.
"""

from __future__ import annotations

import itertools
import os
import signal
from functools import cache

_times = itertools.count(1)


def reached(place: str) -> None:
    """Say where the worker is."""
    if awaited(place) and next(_times) == int(_wanted()[2] or 1):
        os.kill(os.getpid(), signal.SIGKILL)


def awaited(place: str) -> bool:
    """Whether this is the place, for code that has to arrange for it first."""
    return _wanted()[0] == place


@cache
def _wanted() -> tuple[str, str, str]:
    return os.environ.get("TURNOUT_CRASH", "").partition(":")
