"""Where results are written, so that neither a kill nor a full disk leaves half a line or loses a whole one.

While a batch runs, each result is appended to a journal beside the output (`OUT.partial`) as it comes. At the end
the output is put together from it in the input's order, in a temporary file, which takes the output's name only
when it is complete and on disk. A rerun reads the journal, drops a torn last line, and goes on with what is missing.

A line of the journal: number of the input line, TAB, its numbers for the tally as JSON, TAB, the output line.
"""

from __future__ import annotations

import json
import os
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from turnout.batch.tally import Tally
from turnout.errors import TurnoutError

MISSING = -1


class SinkError(TurnoutError):
    """The output can't be written."""


class Sink:
    """One batch's output. Use as a context manager; `finish` makes the output."""

    def __init__(self, path: str, errors: str | None = None, in_order: bool = True) -> None:
        """path: `-` for standard output. errors: a file of their own for lines without an answer."""
        self.path = path
        self._errors = errors
        self._in_order = in_order
        base = Path(".turnout/stdout") if path == "-" else Path(path)
        self.journal = base.with_name(base.name + ".partial")
        self._offsets = array("q")
        """By input line: where its entry begins in the journal."""

    def __enter__(self) -> Sink:
        try:
            self.journal.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.journal.open("a+b")
        except OSError as error:
            raise SinkError(f"can't write {self.journal}: {error.strerror}") from None
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def begin(self, fingerprint: str) -> Tally:
        """Take up the journal of an earlier run of the same batch; one of another batch is not touched.

        Returns what it holds. Raises SinkError if it belongs to another batch.
        """
        tally = Tally()
        self._file.seek(0)
        head = self._file.readline()
        if not head.endswith(b"\n"):
            self._file.truncate(0)
            self._file.write(fingerprint.encode() + b"\n")
            self.sync()
            return tally
        if head.decode(errors="replace").strip() != fingerprint:
            raise SinkError(
                f"{self.journal} holds results of another batch (other input or options). "
                "Move or delete it, or choose another output."
            )
        offset = len(head)
        for raw in self._file:
            if not raw.endswith(b"\n"):
                break  # torn by a kill: the line is done again
            number, entry, _ = raw.split(b"\t", 2)
            self._note(int(number), offset)
            tally.add(json.loads(entry))
            offset += len(raw)
        self._file.truncate(offset)
        self._file.seek(offset)
        tally.resumed = tally.finished
        return tally

    def has(self, line: int) -> bool:
        return line < len(self._offsets) and self._offsets[line] != MISSING

    def write(self, line: int, entry: dict[str, Any], rendered: bytes) -> None:
        """Add one line's result. It is safe from the next `sync` on."""
        try:
            self._note(line, self._file.tell())
            self._file.write(b"%d\t%s\t%s" % (line, json.dumps(entry, separators=(",", ":")).encode(), rendered))
        except OSError as error:
            raise SinkError(f"can't write {self.journal}: {error.strerror}") from None

    def sync(self) -> None:
        """Put on disk what was written."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise SinkError(f"can't write {self.journal}: {error.strerror}") from None

    def finish(self) -> None:
        """Make the output of the journal, and delete the journal."""
        self.sync()
        if self.path == "-":
            for _, rendered in self._entries():
                sys.stdout.buffer.write(rendered)
            sys.stdout.buffer.flush()
        elif self._errors is None:
            self._replace(self.path, lambda entry: True)
        else:
            self._replace(self.path, lambda entry: entry["status"] == "succeeded")
            self._replace(self._errors, lambda entry: entry["status"] != "succeeded")
        self._file.close()
        self.journal.unlink(missing_ok=True)

    def _note(self, line: int, offset: int) -> None:
        while len(self._offsets) <= line:
            self._offsets.extend([MISSING] * max(1024, len(self._offsets)))
        self._offsets[line] = offset

    def _entries(self) -> Iterator[tuple[dict[str, Any], bytes]]:
        offsets = [offset for offset in self._offsets if offset != MISSING]
        if not self._in_order:
            offsets.sort()
        for offset in offsets:
            self._file.seek(offset)
            _, entry, rendered = self._file.readline().split(b"\t", 2)
            yield json.loads(entry), rendered

    def _replace(self, path: str, wanted: Any) -> None:
        temporary = Path(f"{path}.tmp")
        try:
            with temporary.open("wb") as file:
                for entry, rendered in self._entries():
                    if wanted(entry):
                        file.write(rendered)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            raise SinkError(f"can't write {path}: {error.strerror}; all results are in {self.journal}") from None
