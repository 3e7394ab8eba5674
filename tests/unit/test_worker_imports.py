"""What a worker's process doesn't load, for each megabyte is there once per worker."""

from __future__ import annotations

import json
import subprocess
import sys

UNUSED = {"sqlite3", "rich", "jsonschema", "genai_prices", "flower", "aiohttp.web", "turnout.batch.line"}


def test_a_worker_loads_nothing_that_only_commands_or_some_fleets_need() -> None:
    code = "import json, sys, turnout_workers.runtime; print(json.dumps(list(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not UNUSED & set(json.loads(told.stdout))
