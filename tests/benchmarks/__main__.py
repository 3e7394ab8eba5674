"""`make bench`: every benchmark, one after the other, and their report in docs/benchmarks.md.

Each also runs alone; see its `--help`. All take about an hour on two idle cores."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> int:
    worst = 0
    for script in sorted(HERE.glob("*.py")):
        if script.stem not in ("__main__", "bound", "measure", "peers", "report"):
            print(f"\n== {script.stem}", flush=True)
            command = [sys.executable, "-m", f"tests.benchmarks.{script.stem}", "--keep"]
            worst = max(worst, subprocess.run(command).returncode)
    subprocess.run([sys.executable, "-m", "tests.benchmarks.report"], check=True)
    return worst


if __name__ == "__main__":
    sys.exit(main())
