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
from turnout.batch.line import MAX_LINE_BYTES, Defaults, Format, Line, RawLine, RequestOrProblem
from turnout.batch.parse import detect, parse
from turnout.batch.table import BadTable, Row, csv_rows, parquet_rows
from turnout.errors import TurnoutError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
READ_AHEAD = 64
"""Most lines read ahead from an input whose writer may be slow, each of at most `max_line_bytes`."""
ARRIVAL_TIMEOUT_S = 0.01
"""How long to wait for its next line before reporting that none has arrived."""
MAX_UNDETECTED = 20
"""Most illegible lines held, each of at most `max_line_bytes`, until one shows the format of the file."""


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
    def is_regular_file(self) -> bool:
        """Whether all of its lines are there already."""
        return self.path != "-" and Path(self.path).is_file()

    def check(self) -> None:
        """Raises SourceError if nothing of it can be read. A pipe or terminal is left alone: its lines come once."""
        if self.path != "-" and not (Path(self.path).is_fifo() or Path(self.path).is_char_device()):
            next(iter(self), None)

    def count(self) -> int | None:
        """How many lines it has; None if counting would mean parsing it all twice."""
        if not self.is_regular_file or Path(self.path).suffix.lower() not in (".jsonl", ".ndjson", ".txt"):
            return None
        try:
            return sum(1 for _ in self)
        except SourceError:  # reported when its lines are run
            return None

    def __iter__(self) -> Iterator[RawLine]:
        """Every line that isn't blank, numbered as an editor would; raises SourceError."""
        try:
            yield from self._lines()
        except (OSError, EOFError, zlib.error, BadTable) as error:
            reason = getattr(error, "strerror", None) or error
            raise SourceError(f"can't read {self.name}: {reason}") from error

    def arriving(self) -> Iterator[RawLine | None]:
        """The same; None: the next line hasn't arrived yet, as on standard input or a pipe.

        A separate thread reads it, because waiting for a writer can't be interrupted.
        """
        if self.is_regular_file:
            yield from self
            return
        lines: Queue[RawLine | BaseException | None] = Queue(READ_AHEAD)

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
                line = lines.get(timeout=ARRIVAL_TIMEOUT_S)
            except Empty:
                yield None
                continue
            if line is None:
                return
            if isinstance(line, BaseException):
                raise line
            yield line

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
            format = Format.TEXT if suffix == ".txt" else None  # others show theirs in a line
            undetected: list[tuple[int, bytes]] = []  # held until then, so that all results have one format
            for line in _split(file, self.max_line_bytes):
                undetected.append(line)
                format = format or detect(line[1])
                if format or len(undetected) == MAX_UNDETECTED:
                    yield from (self._raw(*one, format or Format.PLAIN) for one in undetected)
                    undetected.clear()
            yield from (self._raw(*one) for one in undetected)

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


def read(source: Source, defaults: Defaults) -> Iterator[tuple[Line, RequestOrProblem]]:
    """Every line of an input, with its request or problem. Raises SourceError."""
    unique = Uniqueness()
    for raw in source:
        line, asked = parse(raw, defaults)
        yield line, unique.check(line, asked)


@contextmanager
def _opened(path: str) -> Iterator[IO[bytes]]:
    # Not `sys.stdin`, whose lock Python needs at exit, while a thread of ours may be waiting there.
    with open(0, "rb", closefd=False) if path == "-" else Path(path).open("rb") as file:
        head = file.peek(2)[:2]
        if head in (BOM_UTF16_LE, BOM_UTF16_BE):
            raise SourceError(f"{path} is UTF-16; save it as UTF-8")
        if head == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=file) as unpacked:  # leaves the file open
                yield cast(IO[bytes], unpacked)
        else:
            yield file


def _split(file: IO[bytes], max_bytes: int) -> Iterator[tuple[int, bytes]]:
    number = 0
    while data := file.readline(max_bytes + 2):
        number += 1
        line = data.rstrip(b"\r\n")[: max_bytes + 1]
        while data and not data.endswith(b"\n"):  # too long, or the last: skip the rest of it
            data = file.readline(max_bytes)
        if line.strip():
            yield number, line
