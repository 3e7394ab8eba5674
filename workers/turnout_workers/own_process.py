"""What a worker asks of the kernel for its own process: room for its connections, and memory that nobody else reads."""

from __future__ import annotations

import contextlib
import ctypes
import resource
import sys

BESIDES = 100
"""What a worker opens beside the connections of its calls: those to Redis, webhooks, metrics, files."""
PR_SET_DUMPABLE = 4  # prctl(2)


def open_as_many_as_allowed(calls: int) -> str | None:
    """Raise the soft limit of open files, often 1,024, to the hard one. Gives what to do if so many calls need more."""
    limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS allows less than it says
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        limit = hard
    if limit in range(calls + BESIDES):  # not if there is none
        return f"this process may open {limit} files, too few for {calls} calls at a time: raise the limit (ulimit -n)"
    return None


def keep_memory_private() -> None:
    """Leave no core dump, which has keys and prompts, and let no other process of this user look into this one."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":  # the limit is not asked where dumps go to a program
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0)
