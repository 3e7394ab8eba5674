"""What it takes to start, and to hold thousands of calls: time and memory of the client, of a worker, and of LiteLLM.

Then one worker with 2,000 calls of 10 s in flight: its memory and its part of the pace that these calls allow. And
how the pace grows with worker processes: with all the work that the cores take, and with less, so that Redis, the
provider and the cores leave room.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks import peers
from tests.benchmarks.measure import add_keep_option, keep, pace, rss_mb, spread
from tests.benchmarks.throughput import FLEET, LIMIT_S
from tests.chaos.stand import Stand, standing

from turnout_workers.config.tables import WorkerTable
from turnout_workers.local import process

OURS = Path(".turnout") / "installed"
"""Where Turnout is installed as on a fleet's machines: some of what tests need would be loaded by Redis's client."""
IN_FLIGHT, CALL_S = 2000, 10.0
PROCESSES = (1, 2, 4)
CURVES = {"cores full": (500, 0.0, 8_000), "room left": (200, 1.0, 3_000)}
"""How much each process may have in flight, how long a call takes, and the jobs of each."""
LEASE_S = WorkerTable().lease_s
"""As in production: the stand's own is short, so that tests notice a death soon, and is renewed ten times as often."""
IMPORT = """
import time
began = time.perf_counter()
{statement}
took = time.perf_counter() - began
pages = int(open("/proc/self/statm").read().split()[1])
print(took, pages * 4096 / 1e6)
"""


def installed() -> str:
    """The interpreter of an environment that has Turnout with its worker, and nothing else."""
    subprocess.run([sys.executable, "-m", "venv", str(OURS)], check=True)
    python = str((OURS / "bin" / "python").absolute())
    subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", ".[worker]"], check=True)
    return python


def imported(python: str, statement: str) -> tuple[float, float]:
    """Seconds and MB of a process that only does this import."""
    # Without this LiteLLM first fetches its prices from the network, and where there is none, waits and retries.
    environ = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    command = [python, "-c", IMPORT.format(statement=statement)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environ)
    took_s, mb = done.stdout.split()[-2:]
    return float(took_s), float(mb)


def compiled(python: str) -> None:
    """Compile everything installed, as pip does; a machine that writes no byte code would measure the compiler."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    where = "import json, sys; print(json.dumps([path for path in sys.path if path]))"
    done = subprocess.run([python, "-c", where], capture_output=True, text=True, check=True)
    subprocess.run([python, "-m", "compileall", "-q", *json.loads(done.stdout)], stdout=subprocess.DEVNULL, env=environ)


def worker_of(stand: Stand, python: str, slots: int) -> subprocess.Popen[bytes]:
    """A ready worker that has done its imports itself; the stand's workers are forked from a process that has."""
    log = stand.folder / "fresh.log"
    environ = stand.environ
    worker = process.start([python, "-m", "turnout", "worker", "-c", str(slots)], log, environ)
    process.wait_until(lambda: " ready." in log.read_text("utf-8", "replace"), worker, log, 60)
    return worker


def started(folder: Path, python: str) -> tuple[float, float]:
    with standing(folder, FLEET.format(delay=0.0), 500) as stand:
        began = time.monotonic()
        worker = worker_of(stand, python, 500)
        took_s, mb = time.monotonic() - began, rss_mb(worker.pid)
        process.stop(worker)
        return took_s, mb


def held(folder: Path, python: str) -> tuple[float, float]:
    """The pace, what 2,000 slots of 10 s calls allow, and the most memory seen.

    The slots are filled evenly over one call's length, as they are in a fleet that has run for a while: filled at
    once, they would all end at once, and the burst would be measured. The pace is taken once all are filled.
    """
    rounds, steps = 3, 50
    with standing(folder, FLEET.format(delay=CALL_S), IN_FLIGHT, LEASE_S) as stand:
        worker = worker_of(stand, python, IN_FLIGHT)
        most_mb, began = 0.0, time.monotonic()
        numbers = [str(number) for number in range(IN_FLIGHT * (rounds + 1))]
        for step in range(steps):
            part = IN_FLIGHT // steps
            stand.submit(numbers[step * part : (step + 1) * part])
            time.sleep(max(0.0, began + (step + 1) * CALL_S / steps - time.monotonic()))
        stand.submit(numbers[IN_FLIGHT:])
        first, began = stand.settled(), time.monotonic()

        def watched() -> None:
            nonlocal most_mb
            most_mb = max(most_mb, rss_mb(worker.pid))

        goal = first + IN_FLIGHT * (rounds - 1)
        stand.until(lambda: stand.settled() >= goal, LIMIT_S, watched)
        rate = (stand.settled() - first) / (time.monotonic() - began)
        process.stop(worker)
        return rate / (IN_FLIGHT / CALL_S), most_mb


def scaled(folder: Path, processes: int, slots: int, call_s: float, jobs: int) -> float:
    """Jobs a second of several processes together, each with as many jobs as one has alone."""
    with standing(folder, FLEET.format(delay=call_s), slots) as stand:
        workers = [stand.start_worker() for _ in range(processes)]
        stand.submit([str(number) for number in range(jobs * processes)])
        return pace(workers[0].pid, stand.settled, jobs * processes, LIMIT_S)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-peers", action="store_true")
    add_keep_option(parser)
    options = parser.parse_args()
    ours = installed()
    for python in [ours] if options.no_peers else [ours, peers.python()]:
        compiled(python)
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(options.rounds):
        found.setdefault("from turnout import Client", []).append(imported(ours, "from turnout import Client; Client"))
        if not options.no_peers:
            found.setdefault("import litellm", []).append(imported(peers.python(), "import litellm"))
        with tempfile.TemporaryDirectory() as folder:
            found.setdefault("turnout worker, until it is ready", []).append(started(Path(folder), ours))
    for name, figures in found.items():
        print(
            f"{name:36} {spread([one for one, _ in figures])} s   {statistics.median(mb for _, mb in figures):.0f} MB"
        )
    with tempfile.TemporaryDirectory() as folder:
        share, most_mb = held(Path(folder), ours)
    print(f"{IN_FLIGHT} calls of {CALL_S:g} s in flight: {share:.0%} of the possible pace, at most {most_mb:.0f} MB")
    curves: dict[str, dict[int, list[float]]] = {name: {} for name in CURVES}
    for _ in range(max(1, options.rounds // 2)):
        for name, work in CURVES.items():
            for processes in PROCESSES:
                with tempfile.TemporaryDirectory() as folder:
                    curves[name].setdefault(processes, []).append(scaled(Path(folder), processes, *work))
    for name, curve in curves.items():
        for processes, rates in curve.items():
            print(f"{name}, {processes} worker processes on {os.cpu_count()} cores: {spread(rates)} jobs/s")
    if options.keep:
        raw = {"starts": found, "held": {"share": share, "mb": most_mb}, "processes": curves}
        keep("footprint", json.loads(json.dumps(raw)))


if __name__ == "__main__":
    main()
