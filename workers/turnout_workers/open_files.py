"""A connection a call: what a process may open bounds the calls that it can have in flight."""

from __future__ import annotations

import contextlib
import resource

BESIDES = 100
"""Of a worker, beside calls: connections to Redis, webhooks, metrics, files."""


def open_as_many_as_allowed(calls: int) -> str | None:
    """Raise the soft limit of open files, often 1,024, to the hard one. Gives what to do if so many calls need more."""
    limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS allows less than it says
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        limit = hard
    if limit in range(calls + BESIDES):  # not if there is none
        return f"this process may open {limit} files, too few for {calls} calls at a time: raise the limit (ulimit -n)"
    return None
