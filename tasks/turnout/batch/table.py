"""Rows of a CSV or Parquet file as plain lines.

Columns named as fields of a plain line are those fields (`prompt`, `id`, `model`, `max_output_tokens` …),
`constraints.NAME` is a constraint, and every other column is a label in the request's `metadata`. Cells are read as
JSON, except in text fields. Row 1 is the first below the header. If a quote is never closed, nothing shows where the
row ends: only its first line counts.
"""

from __future__ import annotations

import csv
import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from turnout.batch.line import MAX_LINE_BYTES
from turnout.request import InferenceRequest

MAX_CELL_CHARS = 64 * MAX_LINE_BYTES
"""Longest cell that the CSV reader accepts. It is far more than a line may have, so that a cell that is too long makes
its line too long instead of ending the reading of the file."""
SURPLUS = "more cells than the header has (a text with the separator in it needs quotes)"
STRAY = 'a quote that is not closed, or not doubled ("") within its text'
_TEXTS = {"prompt", "id", "input"}
_NUMBERS = {"id", "max_output_tokens", "seed", "dimensions"}

Row = tuple[dict[str, Any], str]
"""A line's fields, and its flaw: its text may be cut short, or belong to other rows. '' if all is well."""


class BadTable(Exception):
    """Why a file can't be read as a table, or no further."""


def csv_rows(text: Iterator[str], delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(MAX_CELL_CHARS)
    first = next((line for line in text if line.strip()), "")
    if ";" in first and delimiter not in first:  # from a spreadsheet whose locale writes decimals with a comma
        delimiter = ";"
    records = filter(None, _records(chain([first], text), delimiter))  # skips blank lines
    if (columns := next(records, None)) is None:
        return
    if isinstance(columns, str):
        raise BadTable(f"its header has {STRAY}")
    _check(columns)
    for record in records:
        if isinstance(record, str):
            intact = record.partition('"')[0].split(delimiter)[:-1]
            yield _fields(dict(zip(columns, intact, strict=False))), STRAY
        else:
            surplus = any(record[len(columns) :])  # spreadsheets add empty ones
            yield _fields(dict(zip(columns, record, strict=False))), SURPLUS if surplus else ""


def _records(text: Iterator[str], delimiter: str) -> Iterator[list[str] | str]:
    """The records of a CSV file. One with a stray quote is its first line as it stands, and the next one begins below
    it, so that the lines that the quote has swallowed aren't lost."""
    taken: list[str] = []
    """Lines of the current record."""
    reread: deque[str] = deque()

    def lines() -> Iterator[str]:
        while (line := reread.popleft() if reread else next(text, None)) is not None:
            taken.append(line)
            yield line

    while True:
        try:
            for record in csv.reader(lines(), delimiter=delimiter, strict=True):
                yield record
                taken.clear()
            return
        except csv.Error:
            yield taken[0]
            reread.extendleft(reversed(taken[1:]))
            taken.clear()


def parquet_rows(path: str) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise BadTable("Parquet needs pyarrow; pip install 'turnout[parquet]'") from None
    try:
        with ParquetFile(path) as file:
            _check(file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=1000):
                yield from ((_fields(row), "") for row in batch.to_pylist())
    except ArrowException as error:
        raise BadTable(str(error)) from error


def _check(columns: Sequence[str]) -> None:
    if not {"prompt", "messages", "input"}.intersection(columns):
        found = ", ".join(columns)[:100]
        raise BadTable(f"no column is named prompt, messages or input; there are {found!r}")
    if twice := next((name for name in columns if name and columns.count(name) > 1), None):
        raise BadTable(f"two columns are named {twice}")


def _fields(row: Mapping[str, Any]) -> dict[str, Any]:
    # In the order of the columns, because a rerun recognizes a line by its bytes.
    fields: dict[str, Any] = {}
    for column, cell in row.items():
        if cell is None or cell == "":
            continue
        if isinstance(cell, bytes):  # from a Parquet writer without a type for texts
            cell = cell.decode(errors="surrogateescape" if column in _TEXTS else "backslashreplace")
        if column in _TEXTS:
            fields[column] = _as_integer(column, cell)
        elif column in InferenceRequest.model_fields:
            value = _as_integer(column, _value(cell))
            fields[column] = value | fields.get(column, {}) if isinstance(value, dict) else value
        else:
            constraint = column.startswith("constraints.")
            group = fields.setdefault("constraints" if constraint else "metadata", {})
            if isinstance(group, dict):  # else the row is refused for it
                group[column.removeprefix("constraints.")] = _value(cell) if constraint else str(cell)
    return fields


def _as_integer(column: str, value: Any) -> Any:
    """Data frames turn a column of integers into floats if some are missing."""
    return int(value) if column in _NUMBERS and isinstance(value, float) and value.is_integer() else value


def _value(cell: Any) -> Any:
    try:
        return json.loads(cell) if isinstance(cell, str) else cell
    except (ValueError, RecursionError):
        return cell
