"""What a worker requests from the kernel: enough open files for its connections, and private memory."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import resource
import sys

logger = logging.getLogger(__name__)

OTHER_FILES = 100
"""Files that a worker opens besides its calls' connections: for Redis, webhooks, metrics, logs."""
PR_SET_DUMPABLE = 4  # prctl(2)


def raise_open_file_limit(calls: int) -> int:
    """Raise the soft limit of open files, often 1,024, to the hard one. Returns for how many of these calls it is
    enough, and logs if for fewer."""
    limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS allows less than it claims
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        limit = hard
    if limit not in range(calls + OTHER_FILES):  # -1 means unlimited
        return calls
    room = max(1, limit - OTHER_FILES)
    too_low = "open-file limit %d is too low for %d concurrent jobs; using %d. Raise it (ulimit -n)"
    logger.error(too_low, limit, calls, room)
    return room


def keep_memory_private() -> None:
    """Prevent core dumps, which would contain keys and prompts, and reads of this process by others of the same
    user."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":  # the limit doesn't apply where dumps are piped to a program
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0)
