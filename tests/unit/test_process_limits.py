"""How many files a worker may open, in processes of their own."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import resource
from turnout_workers.process_limits import raise_open_file_limit
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 256))
told = [raise_open_file_limit(calls) for calls in (100, 157)]
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0], *told)
"""


def test_a_low_limit_is_raised_as_far_as_it_may_and_fewer_calls_are_made_if_that_is_too_few() -> None:
    ended = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["256", "100", "156"]
    assert ended.stderr.startswith("this process may open 256 files, too few for 157 jobs at a time, so it takes 156")
