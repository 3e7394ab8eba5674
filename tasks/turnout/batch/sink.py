"""Where results are written, so that neither a kill nor a full disk leaves half a line or loses a whole one.

While a batch runs, each result is appended to a journal beside the output (`OUT.partial`) as it comes. At the end
the output is put together from it in the input's order, in a temporary file, which takes the output's name only
when it is complete and on disk. A rerun reads the journal, drops a torn last line, and goes on with what is missing.
The journal goes when all lines have an answer; else it stays, for the failed ones to be run again.

A line of the journal: number of the input line, digest of its content, its numbers for the tally as JSON, the output
line, parted by TABs. The last one for a line counts.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
from array import array
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from turnout.batch.tally import Tally
from turnout.errors import TurnoutError
from turnout.result import JobStatus

VERSION = 2
"""Of the journal."""
MISSING = -1

Entry = dict[str, Any]
"""A line's numbers, see `tally.entry`."""


class SinkError(TurnoutError):
    """The output can't be written."""


class Sink:
    """One batch's output. Use as a context manager, which keeps others from it; `finish` makes the output."""

    def __init__(
        self, path: str, errors: str | None = None, in_order: bool = True, journal: Path | None = None
    ) -> None:
        """path: `-` for standard output. errors: a file of their own for lines without an answer."""
        self.path = path
        self.journal = journal or Path(f"{path}.partial")
        self.batch = ""
        """The batch's id, as unique as its journal; known from `begin` on."""
        self._errors = errors
        self._in_order = in_order
        self._end = 0
        self._offsets, self._digests = array("q"), array("Q")
        """By input line: where its entry begins in the journal, and its content's digest."""

    def __enter__(self) -> Sink:
        with _writing(self.journal):
            self.journal.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.journal.open("ab")
            self._reader = self.journal.open("rb")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.__exit__()
            raise SinkError(f"another `turnout run` is writing {self.journal} at this moment") from None
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # a full disk, of which `write` or `sync` has told
            self._reader.close()
            self._file.close()

    def begin(self, options: Mapping[str, Any], retry_failed: bool = False) -> Tally:
        """Take up the journal of an earlier run, or begin one. Returns what it holds.

        options: what may not change between the runs of a batch, for jobs are under way that it holds for.
        retry_failed: leave out lines that have no answer. Raises SinkError if the options were others.
        """
        with self.journal.open("rb") as journal:
            head = journal.readline()
            if not head.endswith(b"\n"):
                self._start(options)
                return Tally()
            self._resume(head, options)
            tally, failed = Tally(), set[int]()
            self._end = len(head)
            for raw in journal:
                if not raw.endswith(b"\n"):
                    break  # torn by a kill: the line is done again
                number, digest, told, _ = raw.split(b"\t", 3)
                line, entry = int(number), json.loads(told)
                self.drop(range(line, line + 1), tally)
                self._note(line, int(digest, 16), self._end)
                tally.count(entry)
                (failed.discard if entry["status"] == JobStatus.SUCCEEDED else failed.add)(line)
                self._end += len(raw)
        self._file.truncate(self._end)
        for line in failed if retry_failed else ():
            self.drop(range(line, line + 1), tally)
        tally.resumed = tally.finished
        return tally

    def _start(self, options: Mapping[str, Any]) -> None:
        self.batch = f"run-{uuid4().hex[:12]}"
        head = json.dumps({"turnout_journal": VERSION, "batch": self.batch, "options": dict(options)}).encode() + b"\n"
        with _writing(self.journal):
            self._file.truncate(0)
            self._file.write(head)
        self._end = len(head)
        self.sync()

    def _resume(self, head: bytes, options: Mapping[str, Any]) -> None:
        try:
            known = json.loads(head)
            version, self.batch, before = known["turnout_journal"], known["batch"], known["options"]
        except (ValueError, TypeError, KeyError):
            version = before = None
        if version != VERSION:
            raise SinkError(f"{self.journal} is no journal of this release. Move it away, or choose another output.")
        now = json.loads(json.dumps(dict(options)))
        if changed := sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name)):
            told = ", ".join(f"{name} ({before.get(name)}, now {now.get(name)})" for name in changed)
            raise SinkError(
                f"{self.journal} was begun with other options: {told}. Go on with the same ones, "
                "or move it away to begin anew, or choose another output."
            )

    def has(self, line: int, digest: int) -> bool:
        """Whether this very line has its result."""
        return self._knows(line) and self._digests[line] == digest

    def copy(self, line: int) -> tuple[Entry, bytes]:
        """What was written for a line."""
        return self._read(self._offsets[line])

    def drop(self, lines: range, tally: Tally) -> None:
        """Forget what these lines have: they are others now, or none, or to be run again."""
        for line in range(lines.start, min(lines.stop, len(self._offsets))):
            if self._knows(line):
                tally.count(self._read(self._offsets[line])[0], -1)
                self._offsets[line] = MISSING

    def write(self, line: int, digest: int, entry: Entry, rendered: bytes) -> None:
        """Add one line's result. It is safe from the next `sync` on."""
        told = json.dumps(entry, separators=(",", ":")).encode()
        raw = b"%d\t%x\t%s\t%s" % (line, digest, told, rendered)
        with _writing(self.journal):
            self._file.write(raw)
        self._note(line, digest, self._end)
        self._end += len(raw)

    def sync(self) -> None:
        """Put on disk what was written."""
        with _writing(self.journal):
            self._file.flush()
            os.fsync(self._file.fileno())

    def finish(self, keep_journal: bool = False) -> None:
        """Make the output of the journal, and delete the journal unless it is to be kept."""
        self.sync()
        if self.path == "-":
            for _, rendered in self._entries():
                sys.stdout.buffer.write(rendered)
            sys.stdout.buffer.flush()
        elif self._errors is None:
            self._replace(self.path, lambda entry: True)
        else:
            self._replace(self.path, lambda entry: entry["status"] == JobStatus.SUCCEEDED)
            self._replace(self._errors, lambda entry: entry["status"] != JobStatus.SUCCEEDED)
        if not keep_journal:
            self.journal.unlink(missing_ok=True)

    def _knows(self, line: int) -> bool:
        return line < len(self._offsets) and self._offsets[line] != MISSING

    def _note(self, line: int, digest: int, offset: int) -> None:
        while len(self._offsets) <= line:
            more = max(1024, len(self._offsets) // 4)
            self._offsets.extend([MISSING] * more)
            self._digests.extend([0] * more)
        self._offsets[line], self._digests[line] = offset, digest

    def _read(self, offset: int) -> tuple[Entry, bytes]:
        self._file.flush()
        self._reader.seek(offset)
        _, _, told, rendered = self._reader.readline().split(b"\t", 3)
        return json.loads(told), rendered

    def _entries(self) -> Iterator[tuple[Entry, bytes]]:
        offsets = array("q", (offset for offset in self._offsets if offset != MISSING))
        return (self._read(offset) for offset in (offsets if self._in_order else sorted(offsets)))

    def _replace(self, path: str, wanted: Callable[[Entry], bool]) -> None:
        advice = f"; all results are in {self.journal}, and the same command goes on"
        with replacing(path, advice) as file:
            for entry, rendered in self._entries():
                if wanted(entry):
                    file.write(rendered)


@contextlib.contextmanager
def _writing(path: object, advice: str = "") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SinkError(f"can't write {path}: {error.strerror}{advice}") from None


@contextlib.contextmanager
def replacing(path: str, advice: str = "") -> Iterator[IO[bytes]]:
    """A file that takes its name when it is whole and on disk; cut off before, it leaves nothing. Raises SinkError."""
    temporary = Path(f"{path}.tmp")
    try:
        with _writing(path, advice):
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
