"""The lines of an input, one at a time: JSONL or text from a file or stdin, gzip, CSV, Parquet."""

from __future__ import annotations

import gzip
import io
import json
import threading
import zlib
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from typing import IO, cast

from turnout.batch.ids import Uniqueness
from turnout.batch.line import MAX_LINE_BYTES, Asked, Defaults, Format, Line, RawLine
from turnout.batch.parse import detect, parse
from turnout.batch.table import NoTable, Row, csv_rows, parquet_rows
from turnout.errors import TurnoutError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
AHEAD = 64
"""Lines that are read ahead of an input that waits for its writer."""
LATE_S = 0.01
"""How long a line of it is waited for until it is called late."""
MOST_UNTOLD = 20
"""How many illegible lines are held, each of a megabyte at most, until one tells the format of the file."""


class SourceError(TurnoutError):
    """The input can't be read at all, or not further."""


@dataclass(frozen=True, slots=True)
class Source:
    """An input to be read as a stream, any number of times unless it is stdin (`-`)."""

    path: str
    max_line_bytes: int = MAX_LINE_BYTES

    @property
    def name(self) -> str:
        return "standard input" if self.path == "-" else self.path

    @property
    def waits_for_nobody(self) -> bool:
        """Whether it is a file, which has all of its lines at once."""
        return self.path != "-" and Path(self.path).is_file()

    def check(self) -> None:
        """Raises SourceError if nothing of it can be read. A pipe or terminal is left alone: its lines come once."""
        if self.path != "-" and not (Path(self.path).is_fifo() or Path(self.path).is_char_device()):
            next(iter(self), None)

    def count(self) -> int | None:
        """How many lines it has; None where that would mean reading it all twice the hard way."""
        if not self.waits_for_nobody or Path(self.path).suffix.lower() not in (".jsonl", ".ndjson", ".txt"):
            return None
        try:
            return sum(1 for _ in self)
        except SourceError:  # what is wrong is told where its lines are run
            return None

    def __iter__(self) -> Iterator[RawLine]:
        """Every line that isn't blank, numbered as an editor would; raises SourceError."""
        try:
            yield from self._lines()
        except (OSError, EOFError, zlib.error, NoTable) as error:
            reason = getattr(error, "strerror", None) or error
            raise SourceError(f"can't read {self.name}: {reason}") from error

    def arriving(self) -> Iterator[RawLine | None]:
        """The same; None: the next one is late, as of standard input, or of a pipe.

        A thread of its own reads it: who waits for a writer can't be interrupted.
        """
        if self.waits_for_nobody:
            yield from self
            return
        lines: Queue[RawLine | BaseException | None] = Queue(AHEAD)

        def read() -> None:
            try:
                for raw in self:
                    lines.put(raw)
                lines.put(None)
            except BaseException as error:
                lines.put(error)

        threading.Thread(target=read, name="reading", daemon=True).start()
        while True:
            try:
                found = lines.get(timeout=LATE_S)
            except Empty:
                yield None
                continue
            if found is None:
                return
            if isinstance(found, BaseException):
                raise found
            yield found

    def _lines(self) -> Iterator[RawLine]:
        suffix = Path(self.path.lower().removesuffix(".gz")).suffix
        if suffix == ".parquet":
            yield from self._of_table(parquet_rows(self.path))
            return
        with _opened(self.path) as file:
            if suffix in DELIMITERS:
                text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
                yield from self._of_table(csv_rows(text, DELIMITERS[suffix]))
                return
            format = Format.TEXT if suffix == ".txt" else None  # the others tell theirs by a line
            untold: list[tuple[int, bytes]] = []  # until then; their results read as those of the others
            for line in _split(file, self.max_line_bytes):
                untold.append(line)
                format = format or detect(line[1])
                if format or len(untold) == MOST_UNTOLD:
                    yield from (self._raw(*one, format or Format.PLAIN) for one in untold)
                    untold.clear()
            yield from (self._raw(*one) for one in untold)

    def _of_table(self, rows: Iterable[Row]) -> Iterator[RawLine]:
        for number, (fields, flaw) in enumerate(rows, 1):
            text = json.dumps(fields, default=str, ensure_ascii=False)  # dates and decimals as a person writes them
            try:
                data = text.encode()
            except UnicodeEncodeError:
                data, flaw = text.encode(errors="backslashreplace"), flaw or "a text is not UTF-8"
            yield self._raw(number, data[: self.max_line_bytes + 1], flaw=flaw)

    def _raw(self, number: int, data: bytes, format: Format = Format.PLAIN, flaw: str = "") -> RawLine:
        return RawLine(number, data, format, flaw, self.max_line_bytes)


def read(source: Source, defaults: Defaults) -> Iterator[tuple[Line, Asked]]:
    """Every line of an input, and what it asks. Raises SourceError."""
    unique = Uniqueness()
    for raw in source:
        line, asked = parse(raw, defaults)
        yield line, unique.check(line, asked)


@contextmanager
def _opened(path: str) -> Iterator[IO[bytes]]:
    # Not `sys.stdin`, whose lock Python wants at its end, though a thread of ours may be waiting there.
    with open(0, "rb", closefd=False) if path == "-" else Path(path).open("rb") as file:
        begins = file.peek(2)[:2]
        if begins in (BOM_UTF16_LE, BOM_UTF16_BE):
            raise SourceError(f"{path} is UTF-16; save it as UTF-8")
        if begins == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=file) as unpacked:  # which leaves the file open
                yield cast(IO[bytes], unpacked)
        else:
            yield file


def _split(file: IO[bytes], max_bytes: int) -> Iterator[tuple[int, bytes]]:
    number = 0
    while data := file.readline(max_bytes + 2):
        number += 1
        line = data.rstrip(b"\r\n")[: max_bytes + 1]
        while data and not data.endswith(b"\n"):  # too long, or the last: pass over the rest of it
            data = file.readline(max_bytes)
        if line.strip():
            yield number, line
