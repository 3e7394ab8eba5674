"""How many files a worker may open, in processes of their own."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import resource
from turnout_workers.own_process import open_as_many_as_allowed
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 256))
told = [open_as_many_as_allowed(calls) for calls in (100, 157)]
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0], *told, sep="\\n")
"""


def test_a_low_limit_is_raised_as_far_as_it_may_and_told_of_if_that_is_too_few() -> None:
    soft, enough, too_few = subprocess.check_output([sys.executable, "-c", SCRIPT], text=True).splitlines()
    assert (soft, enough) == ("256", "None")
    assert too_few.startswith("this process may open 256 files, too few for 157 calls at a time")
