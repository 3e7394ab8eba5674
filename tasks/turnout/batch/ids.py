"""The ids of lines, and which line has which."""

from __future__ import annotations

import json
import re
import sqlite3
from typing import Any

from turnout.batch.journal import writing
from turnout.batch.line import Format, Line, RequestOrProblem
from turnout.result import Problem
from turnout.validation import MAX_ID_CHARS

_LEADING_ID = re.compile(rb'\s*\{\s*"(?:custom_id|id)"\s*:\s*("(?:[^"\\]|\\.)*")')


class Uniqueness:
    """Finds duplicate ids: `note` returns the line that had one first, `times` how often it came before. Beyond a few
    megabytes, they are kept in a temporary file."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("")
        self._db.execute("CREATE TABLE ids (id PRIMARY KEY, number) WITHOUT ROWID")

    def note(self, id: str | int | None, number: int) -> int:
        """The line that had it first: this one, or an earlier one."""
        if id is None or self._run("INSERT OR IGNORE INTO ids VALUES (?, ?)", id, number).rowcount:
            return number
        first: int = self._run("SELECT number FROM ids WHERE id = ?", id).fetchone()[0]
        return first

    def times(self, id: int) -> int:
        """How often it was asked about before."""
        count = "INSERT INTO ids VALUES (?, 0) ON CONFLICT DO UPDATE SET number = number + 1 RETURNING number"
        before: int = self._run(count, id).fetchone()[0]
        return before

    def _run(self, statement: str, *values: str | int) -> sqlite3.Cursor:
        with writing("the ids of lines to a temporary file", "; TMPDIR may name another folder for it"):
            return self._db.execute(statement, values)

    def check(self, line: Line, asked: RequestOrProblem) -> RequestOrProblem:
        """Its request; or a problem, if an earlier line has its id."""
        first = self.note(line.custom_id, line.number)
        if first == line.number or isinstance(asked, Problem):
            return asked
        used = f"id {line.custom_id!r} was already used on line {first}; ids must be unique"
        return Problem(code="duplicate_custom_id", message=f"line {line.number}: {used}")


def usable_id(value: Any) -> str | int | None:
    """The value, if it can be the id of a line."""
    if isinstance(value, str):
        return value if 0 < len(value) <= MAX_ID_CHARS and value.isprintable() else None
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63 else None


def legible_id(raw: bytes, format: Format) -> str | int | None:
    """The id of any line, also of one that can't be run: what it starts with, or its field; never a guess."""
    if format is Format.TEXT:
        return None
    match = _LEADING_ID.match(raw)
    try:
        if match and (opening := usable_id(json.loads(match[1]))) is not None:
            return opening
        value = json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    return usable_id(value.get("custom_id" if format is Format.OPENAI else "id")) if isinstance(value, dict) else None
