"""Rows of a CSV or Parquet file as plain lines.

Columns named as fields of a plain line are those fields (`prompt`, `id`, `model`, `max_output_tokens` …),
`constraints.NAME` is a constraint, and every other column is a label in the request's `metadata`. Cells of fields other
than texts are read as JSON. Row 1 is the first below the header. With a quote that is never closed nobody knows where a
row ends: it is its first line alone.
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
"""Longest cell that a CSV file is read with. It is far more than a line may have, so that a cell that is too long makes
its line too long, and doesn't end the reading of the file."""
SURPLUS = "more cells than the header has (a text with the separator in it needs quotes)"
STRAY = 'a quote that is not closed, or not doubled ("") within its text'
_TEXTS = {"prompt", "id", "input"}
_NUMBERS = {"id", "max_output_tokens", "seed", "dimensions"}

Row = tuple[dict[str, Any], str]
"""A line's fields, and why it is none after all: its text may be cut short, or be that of others. '' if all is well."""


class NoTable(Exception):
    """Why a file can't be read as a table, or not further."""


def csv_rows(text: Iterator[str], delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(MAX_CELL_CHARS)
    first = next((line for line in text if line.strip()), "")
    if ";" in first and delimiter not in first:  # of a spreadsheet where decimals have a comma
        delimiter = ";"
    records = filter(None, _records(chain([first], text), delimiter))  # blank lines are none
    if (columns := next(records, None)) is None:
        return
    if isinstance(columns, str):
        raise NoTable(f"its header has {STRAY}")
    _check(columns)
    for record in records:
        if isinstance(record, str):
            sure = record.partition('"')[0].split(delimiter)[:-1]
            yield _fields(dict(zip(columns, sure, strict=False))), STRAY
        else:
            surplus = any(record[len(columns) :])  # empty ones are a spreadsheet's
            yield _fields(dict(zip(columns, record, strict=False))), SURPLUS if surplus else ""


def _records(text: Iterator[str], delimiter: str) -> Iterator[list[str] | str]:
    """The records of a CSV file. One with a stray quote is its first line as it stands, and the next one begins below,
    lest those that the quote has swallowed are lost."""
    taken: list[str] = []
    """Lines of the record that is being read."""
    again: deque[str] = deque()

    def lines() -> Iterator[str]:
        while (line := again.popleft() if again else next(text, None)) is not None:
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
            again.extendleft(reversed(taken[1:]))
            taken.clear()


def parquet_rows(path: str) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise NoTable("Parquet needs pyarrow; pip install 'turnout[parquet]'") from None
    try:
        with ParquetFile(path) as file:
            _check(file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=1000):
                yield from ((_fields(row), "") for row in batch.to_pylist())
    except ArrowException as error:
        raise NoTable(str(error)) from error


def _check(columns: Sequence[str]) -> None:
    if not {"prompt", "messages", "input"}.intersection(columns):
        found = ", ".join(columns)[:100]
        raise NoTable(f"no column is called prompt, messages or input; there are {found!r}")
    if twice := next((name for name in columns if name and columns.count(name) > 1), None):
        raise NoTable(f"two columns are called {twice}")


def _fields(row: Mapping[str, Any]) -> dict[str, Any]:
    # In the order of the columns, for by its bytes a rerun knows a line again.
    fields: dict[str, Any] = {}
    for column, cell in row.items():
        if cell is None or cell == "":
            continue
        if isinstance(cell, bytes):  # of a Parquet file whose writer had no type for texts
            cell = cell.decode(errors="surrogateescape" if column in _TEXTS else "backslashreplace")
        if column in _TEXTS:
            fields[column] = _whole(column, cell)
        elif column in InferenceRequest.model_fields:
            value = _whole(column, _value(cell))
            fields[column] = value | fields.get(column, {}) if isinstance(value, dict) else value
        else:
            constraint = column.startswith("constraints.")
            whole = fields.setdefault("constraints" if constraint else "metadata", {})
            if isinstance(whole, dict):  # else the row is refused for it
                whole[column.removeprefix("constraints.")] = _value(cell) if constraint else str(cell)
    return fields


def _whole(column: str, value: Any) -> Any:
    """A data frame makes floats of a column of whole numbers in which some are missing."""
    return int(value) if column in _NUMBERS and isinstance(value, float) and value.is_integer() else value


def _value(cell: Any) -> Any:
    try:
        return json.loads(cell) if isinstance(cell, str) else cell
    except (ValueError, RecursionError):
        return cell
