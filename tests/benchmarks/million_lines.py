"""A file of a million lines through `turnout run`, with the command, workers and Redis killed on the way.

The provider is SIMULATED, in a process of its own, and answers at once: the queue's own cost is what is measured. Each
kill is a SIGKILL; what died is started again at once, the command with the very same arguments. At the end each line of
the output is parsed by OpenAI's own types, and all are counted against the input and the simulator's books.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice, pairwise
from pathlib import Path

import redis
from openai.types.chat import ChatCompletion
from tests.benchmarks.measure import add_keep_option, keep
from tests.benchmarks.throughput import FLEET, SLOTS
from tests.chaos.stand import Stand, standing

from turnout_workers.local import process

WORKERS = 2
KILLED = ("command", "worker", "redis")
"""In turns."""
STALLED_S = 120.0
"""Without a single further line: the run has failed."""
RESUME_LIMIT_S = 60.0
Point = tuple[float, int, float]
"""A moment (s), the lines done by then, and the command's CPU time (s) until then, over all its lives."""


class Run:
    """The command on the whole file, its journal as the count of what is done, and the most memory seen."""

    def __init__(self, stand: Stand, source: Path) -> None:
        self.stand, self.source = stand, source
        self.output = source.with_name("results.jsonl")
        self.command_mb = self.redis_mb = 0.0
        self.points: list[Point] = []
        self.resumed: list[tuple[str, float]] = []
        """What was killed, and the time until the next line was done."""
        self._done = 0
        self._cpu_before_s = 0.0
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "turnout", "run", str(self.source), "-o", str(self.output), "--workers", "0"]
        environ = self.stand.environ
        self.log = self.source.with_name("command.log")
        self.command = process.start(command, self.log, environ)

    def done(self) -> int:
        """Results in the journal, looked at past the lock of the command."""
        journal = self.output.with_name(self.output.name + ".journal")
        with contextlib.suppress(sqlite3.Error), contextlib.closing(
            sqlite3.connect(f"file:{journal}?immutable=1", uri=True)
        ) as looked_at:  # fmt: skip
            self._done = looked_at.execute("SELECT max(rowid) FROM results").fetchone()[0] or self._done
        return self._done

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.command.pid}/stat").read_text().rpartition(")")[2].split()
        return self._cpu_before_s + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def watch(self) -> None:
        if self.command.poll() is None:
            self.points.append((time.monotonic(), self.done(), self.cpu_s()))
            text = Path(f"/proc/{self.command.pid}/status").read_text()
            self.command_mb = max(self.command_mb, *(int(s.split()[1]) / 1e3 for s in text.splitlines() if "HWM" in s))
        self.redis_mb = max(self.redis_mb, int(self.stand.client.info("memory")["used_memory_peak"]) / 1e6)

    def until(self, lines: int) -> None:
        moved_at, last = time.monotonic(), self.done()
        while (now := self.done()) < lines and self.command.poll() is None:
            if now > last:
                moved_at, last = time.monotonic(), now
            assert time.monotonic() - moved_at < STALLED_S, f"stalled at {now} lines; {self.log.read_text()[-500:]}"
            time.sleep(0.5)
            self.watch()
        assert self.command.poll() in (None, 0), f"the command ended: {self.log.read_text()[-500:]}"

    def kill(self, what: str) -> None:
        began, before = time.monotonic(), self.done()
        if what == "command":
            self._cpu_before_s = self.cpu_s()
            self.command.kill()
            self.command.wait()
            before = self.done()
            self.start()
        elif what == "worker":
            self.stand.workers[0].kill()
            self.stand.stop_worker(self.stand.workers[0])
            self.stand.start_worker(wait=False)
        else:
            self.stand.redis.kill()
            self.stand.redis.restart()
        while self.done() <= before:
            assert time.monotonic() - began < STALLED_S, f"not resumed; {self.log.read_text()[-500:]}"
            time.sleep(0.02)
        self.resumed.append((what, time.monotonic() - began))


def faults(run: Run, lines: int) -> list[str]:
    """What is wrong with the output. OpenAI's own types parse each line."""
    seen = 0
    with run.output.open("rb") as output:
        for seen, raw in enumerate(output, 1):
            line = json.loads(raw)
            ChatCompletion.model_validate(line["response"]["body"])
            if line["custom_id"] != f"line-{seen}" or line["response"]["status_code"] != 200 or line["error"]:
                return [f"line {seen} of the output is {raw[:200]!r}"]
    return [] if seen == lines else [f"{seen} lines of output for {lines} of input"]


def paces(points: list[Point], lines: int) -> list[float]:
    """Lines a second within each fifth of the file: medians of five-second spans, so that the kills don't count."""
    coarse = [points[0]]
    for point in points:
        if point[0] - coarse[-1][0] >= 5:
            coarse.append(point)
    spans: list[list[float]] = [[] for _ in range(5)]
    for (began, first, _), (ended, last, _) in pairwise(coarse):
        spans[min(4, first * 5 // lines)].append((last - first) / (ended - began))
    return [statistics.median(one) if one else 0.0 for one in spans]


def cpu_ms(points: list[Point], first: int, last: int) -> float:
    """CPU time of the command for each line between these two, in milliseconds."""
    within = [point for point in points if first <= point[1] <= last]
    (_, lines, began), (_, more, ended) = within[0], within[-1]
    return 1000 * (ended - began) / max(1, more - lines)


def write(source: Path, lines: int) -> None:
    with source.open("w") as file:
        for number in range(1, lines + 1):
            messages = [{"role": "user", "content": f"Question {number}?"}]
            body = {"model": "llama-3.3-70b", "messages": messages, "max_tokens": 8}
            line = {"custom_id": f"line-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--kills", type=int, default=5)
    add_keep_option(parser)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="turnout-lines-") as folder,
        standing(Path(folder), FLEET.format(delay=0.0), SLOTS, lease_s=30.0) as stand,
    ):
        os.chdir(folder)
        source = Path(folder) / "input.jsonl"
        write(source, options.lines)
        for _ in range(WORKERS):
            stand.start_worker()
        began = time.monotonic()
        run = Run(stand, source)
        for number, what in enumerate(islice(cycle(KILLED), options.kills), 1):
            run.until(options.lines * number // (options.kills + 1))
            run.kill(what)
            print(f"{run.done()} lines; {what} killed; went on after {run.resumed[-1][1]:.1f} s", flush=True)
        run.until(options.lines)
        try:
            code = run.command.wait(STALLED_S)
        except subprocess.TimeoutExpired:
            code = -1
        took = time.monotonic() - began
        wrong = faults(run, options.lines) if code == 0 else [f"it ended with {code}: {run.log.read_text()[-500:]}"]
        stats = stand.oracle()
        with redis.Redis.from_url(stand.redis.url) as client:
            left = int(client.info("memory")["used_memory"]) / 1e6
    slow = [f"{what}: {took_s:.0f} s" for what, took_s in run.resumed if took_s > RESUME_LIMIT_S]
    wrong += [f"resumed too late: {', '.join(slow)}"] if slow else []
    fifths, part = paces(run.points, options.lines), min(10_000, options.lines // 10)
    first_ms, last_ms = cpu_ms(run.points, 0, part), cpu_ms(run.points, options.lines - part, options.lines)
    print(f"{options.lines} lines in {took:.0f} s, {options.lines / took:.0f}/s over all")
    print(f"lines a second by fifths of the file: {', '.join(f'{one:.0f}' for one in fifths)}")
    print(f"CPU of the command a line: the first {part} {first_ms:.2f} ms, the last {part} {last_ms:.2f} ms")
    print(f"memory at most: command {run.command_mb:.0f} MB, Redis {run.redis_mb:.0f} MB (at the end {left:.0f} MB)")
    print(f"jobs by calls, as the simulator counted: {stats['jobs_by_calls']}")
    print("\n".join(wrong) or "every line has one result, in order, and OpenAI's types parse it")
    if options.keep:
        figures = {
            "lines": options.lines,
            "took_s": took,
            "by_fifths": fifths,
            "first_ms": first_ms,
            "last_ms": last_ms,
            "command_mb": run.command_mb,
            "redis_mb": run.redis_mb,
        }
        keep("million_lines", {**figures, "resumed_s": run.resumed, "jobs_by_calls": stats["jobs_by_calls"]})
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
