"""`make bench`: every benchmark, one after the other. Each runs alone as well; `--help` says how."""

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
            worst = max(worst, subprocess.run([sys.executable, "-m", f"tests.benchmarks.{script.stem}"]).returncode)
    return worst


if __name__ == "__main__":
    sys.exit(main())
