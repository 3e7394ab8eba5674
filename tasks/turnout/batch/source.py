"""The lines of an input, one at a time: JSONL or text from a file or stdin, gzip, CSV, Parquet.

Rows of a CSV or Parquet file become plain JSON lines: columns named as fields of a plain line are those fields
(`prompt`, `id`, `model`, `max_output_tokens` …), `constraints.NAME` is a constraint, and every other column is
a label in the request's `metadata`. Cells of fields other than texts are read as JSON. Row 1 is the first
below the header.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from turnout.batch.ids import Uniqueness
from turnout.batch.line import Asked, Defaults, Format, Line
from turnout.batch.parse import MAX_LINE_BYTES, detect, parse
from turnout.errors import TurnoutError
from turnout.request import InferenceRequest

FORMATS = {".txt": Format.TEXT, ".csv": Format.PLAIN, ".tsv": Format.PLAIN, ".parquet": Format.PLAIN}
"""By the suffix of a file. The others tell their format by their first line."""
MAX_CELL_CHARS = 64 * MAX_LINE_BYTES
"""Of a CSV file. So much longer than a line may be that one cell too long is the end of its row alone."""
_TEXTS = {"prompt", "model", "id", "input"}
_SURPLUS = "more cells than the header has (a text with a comma needs quotes)"
"""No field is called so, and the row is refused for it: half of its text may be in there."""


class SourceError(TurnoutError):
    """The input can't be read at all, or not further."""


@dataclass(frozen=True, slots=True)
class RawLine:
    """A line as it stands. One longer than `MAX_LINE_BYTES` is cut there, one byte too long."""

    number: int
    data: bytes
    format: Format

    @property
    def digest(self) -> int:
        """64 bits that tell whether the line is still the same one."""
        return int.from_bytes(hashlib.blake2b(self.data, digest_size=8).digest())


@dataclass(frozen=True, slots=True)
class Source:
    """An input to be read as a stream, any number of times unless it is stdin (`-`)."""

    path: str

    @property
    def name(self) -> str:
        return "standard input" if self.path == "-" else self.path

    def check(self) -> None:
        """Raises SourceError if it can't be opened at all."""
        if self.path != "-":
            try:
                Path(self.path).open("rb").close()
            except OSError as error:
                raise SourceError(f"can't read {self.name}: {error.strerror}") from None

    def __iter__(self) -> Iterator[RawLine]:
        """Every line that isn't blank, numbered as an editor would; raises SourceError."""
        suffix = Path(self.path.lower().removesuffix(".gz")).suffix
        format = FORMATS.get(suffix)
        try:
            for number, data in self._read(suffix):
                format = format or detect(data)
                yield RawLine(number, data[: MAX_LINE_BYTES + 1], format)
        except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
            reason = getattr(error, "strerror", None) or error
            raise SourceError(f"can't read {self.name}: {reason}") from error

    def _read(self, suffix: str) -> Iterator[tuple[int, bytes]]:
        if suffix == ".parquet":
            yield from enumerate(map(_row, _parquet(self.path)), 1)
            return
        with _opened(self.path) as file:
            if suffix in FORMATS.keys() - {".txt"}:
                text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
                csv.field_size_limit(MAX_CELL_CHARS)
                rows = csv.DictReader(text, restkey=_SURPLUS, delimiter="\t" if suffix == ".tsv" else ",")
                if rows.fieldnames:
                    _check_columns(rows.fieldnames, self.path)
                yield from enumerate(map(_row, rows), 1)
            else:
                yield from _lines(file)


def read(source: Source, defaults: Defaults) -> Iterator[tuple[Line, Asked]]:
    """Every line of an input, and what it asks. Raises SourceError."""
    unique = Uniqueness()
    for raw in source:
        line, asked = parse(raw.data, raw.number, raw.format, defaults)
        yield line, unique.check(line, asked)


def _opened(path: str) -> IO[bytes]:
    file = cast(io.BufferedReader, sys.stdin.buffer if path == "-" else Path(path).open("rb"))  # noqa: SIM115
    if file.peek(2)[:2] == b"\x1f\x8b":
        return cast(IO[bytes], gzip.GzipFile(fileobj=file))
    return file


def _lines(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    number = 0
    while data := file.readline(MAX_LINE_BYTES + 2):
        number += 1
        line = data.rstrip(b"\r\n")
        while data and not data.endswith(b"\n"):  # too long, or the last: pass over the rest of it
            data = file.readline(MAX_LINE_BYTES)
        if line.strip():
            yield number, line


def _check_columns(columns: Iterable[str], path: str) -> None:
    if not {"prompt", "messages", "input"}.intersection(names := list(columns)):
        raise SourceError(
            f"can't read {path}: no column is called prompt, messages or input; there are {', '.join(names)[:100]!r}"
        )


def _row(row: Mapping[str, Any]) -> bytes:
    # `default=str`: dates and decimals as a person writes them; a byte that is no UTF-8 becomes half a surrogate
    # pair, which is then refused for this row alone.
    return json.dumps(_fields(row), default=str).encode()


def _fields(row: Mapping[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for column, cell in row.items():
        if cell is None or cell == "":
            continue
        if column == _SURPLUS:
            if any(cell):  # empty ones are a spreadsheet's
                fields[column] = cell
        elif column.startswith("constraints."):
            fields.setdefault("constraints", {})[column.removeprefix("constraints.")] = _cell(cell)
        elif column in _TEXTS:
            fields[column] = cell
        elif column in InferenceRequest.model_fields:
            fields[column] = _cell(cell)
        else:
            fields.setdefault("metadata", {})[column] = str(cell)
    return fields


def _cell(cell: Any) -> Any:
    try:
        return json.loads(cell) if isinstance(cell, str) else cell
    except (ValueError, RecursionError):
        return cell


def _parquet(path: str) -> Iterator[Mapping[str, Any]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise SourceError(f"can't read {path}: Parquet needs pyarrow; pip install 'turnout[parquet]'") from None
    try:
        with ParquetFile(path) as file:
            _check_columns(file.schema_arrow.names, path)
            for batch in file.iter_batches(batch_size=1000):
                yield from batch.to_pylist()
    except ArrowException as error:
        raise SourceError(f"can't read {path}: {error}") from error
