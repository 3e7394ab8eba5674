"""What a worker asks of the kernel for its own process: room for its connections, and memory that nobody else reads."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import resource
import sys

logger = logging.getLogger(__name__)

BESIDES = 100
"""What a worker opens beside the connections of its calls: those to Redis, webhooks, metrics, files."""
PR_SET_DUMPABLE = 4  # prctl(2)


def raise_open_file_limit(calls: int) -> int:
    """Raise the soft limit of open files, often 1,024, to the hard one. Gives for how many calls, at most so many, that
    leaves room; says so where it is for fewer."""
    limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS allows less than it says
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        limit = hard
    if limit not in range(calls + BESIDES):  # nor is there one, perhaps
        return calls
    room = max(1, limit - BESIDES)
    told = "this process may open %d files, too few for %d jobs at a time, so it takes %d: raise the limit (ulimit -n)"
    logger.error(told, limit, calls, room)
    return room


def keep_memory_private() -> None:
    """Leave no core dump, which has keys and prompts, and let no other process of this user look into this one."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":  # the limit is not asked where dumps go to a program
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0)
