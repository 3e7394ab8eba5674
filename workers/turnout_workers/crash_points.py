"""Places where a worker can be told to die, so that tests can show that nothing is lost there.

`TURNOUT_CRASH=PLACE:N` kills the process, as a lack of memory would, the N-th time it comes to that place. Without the
variable, `reached` does nothing.
"""

from __future__ import annotations

import os
import signal

_PLACE, _, _COUNT = os.environ.get("TURNOUT_CRASH", "").partition(":")
_left = int(_COUNT or 1)


def reached(place: str) -> None:
    """Say where the worker is."""
    if place == _PLACE:
        _die()


def awaited(place: str) -> bool:
    """Whether this is the place: for those that have to arrange for it first."""
    return place == _PLACE


def _die() -> None:
    global _left
    _left -= 1
    if _left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
