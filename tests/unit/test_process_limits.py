"""How many files a worker may open, tried in separate processes."""

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
    assert ended.stderr.startswith("open-file limit 256 is too low for 157 concurrent jobs; using 156")
