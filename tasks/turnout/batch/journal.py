"""What a batch has come to so far, kept so that neither a kill nor a full disk leaves half a line or loses a whole one.

Each result is appended to a file beside the output (`OUT.journal`) as it comes. A rerun reads it, drops a torn last
line, and goes on with what is missing: lines that were edited or added since, and failed ones if they are to be run
again. It stays when all lines have an answer, so that the same command never pays for one twice.

A line of it: number of the input line, digest of its content, its numbers for the tally as JSON, the output line,
separated by TABs. The last one for a line counts.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from turnout.batch.ids import LineByHash
from turnout.batch.tally import Entry, Tally
from turnout.errors import TurnoutError
from turnout.result import JobStatus

VERSION = 2
"""Of the format."""
HEAD = b'{"turnout_journal":'
"""How the first line begins."""
OPTIONS, ENDED = b"options\t", b"ended\n"
"""How lines begin, or what they are, that are no entries: options of a later run, and the end of a run."""
MISSING = -1
GOES_ON = "; what is done is kept, and the same command goes on"


class Unwritable(TurnoutError):
    """The results can't be written."""


class Journal:
    """One batch's results. Use as a context manager, which keeps others from it, and `begin` before all else."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.batch = ""
        """The batch's id, as unique as its journal."""
        self.tally = Tally()
        """What it holds."""
        self._end = 0
        self._offsets, self._digests = array("q"), array("Q")
        """By input line: where its entry begins, and its content's digest."""
        self._of_job = LineByHash()
        """The line that has, or had, a job's result, if its entry names the job."""

    def __enter__(self) -> Journal:
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab")
            self._reader = self.path.open("rb")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.__exit__()
            raise Unwritable(f"another `turnout run` is writing {self.path} at this moment") from None
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # a full disk, of which `write` or `sync` has told
            self._reader.close()
            self._file.close()

    def forget(self) -> None:
        """Whatever it holds: the next `begin` begins anew."""
        with writing(self.path):
            self._file.truncate(0)

    def begin(self, options: Mapping[str, Any], retry_failed: bool = False) -> Tally:
        """Take up the journal of an earlier run, or begin one. Returns what it holds, which is kept up to date.

        options: what must be the same in all runs of a batch, for the jobs under way depend on it. Others may hold for
        lines that are run again, once a run has come to its end. Raises Unwritable if they must not be others.
        retry_failed: leave out lines that have no answer.
        """
        with self.path.open("rb") as file:
            head = file.readline()
            if not head.endswith(b"\n") and HEAD.startswith(head[: len(HEAD)]):  # new, or torn in its first line
                self._start(options)
                return self.tally
            before, ended = self._resume(head), False
            failed = set[int]()
            self._end = len(head)
            for raw in file:
                if not raw.endswith(b"\n"):
                    break  # torn by a kill: the line is done again
                ended = raw == ENDED
                with contextlib.suppress(ValueError):  # a gap that a power cut has left: the line is done again
                    if raw.startswith(OPTIONS):
                        before = json.loads(raw.removeprefix(OPTIONS))
                    number, digest, told, _ = raw.split(b"\t", 3)
                    line, entry = int(number), json.loads(told)
                    self.drop(range(line, line + 1))
                    self._note(line, int(digest, 16), entry)
                    (failed.discard if entry["status"] == JobStatus.SUCCEEDED else failed.add)(line)
                self._end += len(raw)
        self._file.truncate(self._end)
        self._reader.close()  # it may have read ahead into the torn line
        self._reader = self.path.open("rb")
        self._bind(before, options, ended, retry_failed)
        for line in failed if retry_failed else ():
            self.drop(range(line, line + 1))
        self.tally.resumed = self.tally.finished
        return self.tally

    def _start(self, options: Mapping[str, Any]) -> None:
        self.batch = f"run-{uuid4().hex[:12]}"
        head = json.dumps({"turnout_journal": VERSION, "batch": self.batch, "options": dict(options)}).encode() + b"\n"
        with writing(self.path):
            self._file.truncate(0)
            self._file.write(head)
        self._end = len(head)
        self.sync()

    def _resume(self, head: bytes) -> dict[str, Any]:
        try:
            known = json.loads(head)
            version, self.batch, before = known["turnout_journal"], known["batch"], known["options"]
        except (ValueError, TypeError, KeyError):
            version = None
        if version != VERSION:
            raise Unwritable(f"{self.path} is no journal of this release. Move it away, or choose another output.")
        options: dict[str, Any] = before
        return options

    def _bind(self, before: dict[str, Any], options: Mapping[str, Any], ended: bool, retry_failed: bool) -> None:
        now = json.loads(json.dumps(dict(options)))
        changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        if changed and not (ended and retry_failed):
            told = ", ".join(f"{name} ({before.get(name)}, now {now.get(name)})" for name in changed)
            raise Unwritable(
                f"{self.path} was begun with other options: {told}. Go on with the same ones, "
                "or choose another output. Once all is done, --retry-failed may have others; so may --anew."
            )
        if ended:  # no more: jobs of this run may be under way before it has written anything
            self._append(OPTIONS + json.dumps(now).encode() + b"\n")
            self.sync()

    def has(self, line: int, digest: int) -> bool:
        """Whether this very line has its result."""
        return self._knows(line) and self._digests[line] == digest

    def line_of(self, job: int) -> int | None:
        """The line that has this job's result, if its entry names the job."""
        line = self._of_job.get(job)
        return line if line and self._knows(line) and self.entry(line)[0].get("job") == job else None

    def entry(self, line: int) -> tuple[Entry, bytes]:
        """What was written for a line: its numbers, and its line of output."""
        return self._read(self._offsets[line])

    def output(self, in_order: bool = True) -> Iterator[tuple[bool, bytes]]:
        """The lines of output, each with whether it has an answer: in the input's order, or in that of their coming."""
        offsets = array("q", (offset for offset in self._offsets if offset != MISSING))
        for offset in offsets if in_order else sorted(offsets):
            entry, rendered = self._read(offset)
            yield entry["status"] == JobStatus.SUCCEEDED, rendered

    def drop(self, lines: range) -> None:
        """Forget the results of these lines: they have changed, are gone, or are to be run again."""
        for line in range(lines.start, min(lines.stop, len(self._offsets))):
            if self._knows(line):
                entry, _ = self.entry(line)
                self.tally.count(entry, -1)
                self.tally.resumed -= 1
                self._offsets[line] = MISSING

    def write(self, line: int, digest: int, entry: Entry, rendered: bytes) -> None:
        """Add one line's result. It is safe from the next `sync` on."""
        raw = b"%d\t%x\t%s\t%s" % (line, digest, json.dumps(entry, separators=(",", ":")).encode(), rendered)
        self._note(line, digest, entry)
        self._append(raw)

    def end(self) -> None:
        """Note that no job of the batch is under way any more."""
        self._append(ENDED)
        self.sync()

    def _append(self, raw: bytes) -> None:
        with writing(self.path, GOES_ON):
            self._file.write(raw)
        self._end += len(raw)

    def sync(self) -> None:
        """Put on disk what was written."""
        with writing(self.path, GOES_ON):
            self._file.flush()
            os.fsync(self._file.fileno())

    def _knows(self, line: int) -> bool:
        return line < len(self._offsets) and self._offsets[line] != MISSING

    def _note(self, line: int, digest: int, entry: Entry) -> None:
        """An entry for this line begins at the end of what is there."""
        while len(self._offsets) <= line:
            more = max(1024, len(self._offsets) // 4)
            self._offsets.extend([MISSING] * more)
            self._digests.extend([0] * more)
        self._offsets[line], self._digests[line] = self._end, digest
        self.tally.count(entry)
        if "job" in entry:
            self._of_job.put(entry["job"], line)

    def _read(self, offset: int) -> tuple[Entry, bytes]:
        self._file.flush()
        self._reader.seek(offset)
        _, _, told, rendered = self._reader.readline().split(b"\t", 3)
        return json.loads(told), rendered


@contextlib.contextmanager
def writing(path: object, advice: str = "") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unwritable(f"can't write {path}: {error.strerror}{advice}") from None
