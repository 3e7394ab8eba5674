"""A process's memory, which has keys and prompts, is for nobody else."""

from __future__ import annotations

import ctypes
import resource
import sys

PR_SET_DUMPABLE = 4  # prctl(2)


def keep_memory_private() -> None:
    """Leave no core dump of this process, and let no other process of its user look into it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":  # the limit is not asked where dumps go to a program
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0)
