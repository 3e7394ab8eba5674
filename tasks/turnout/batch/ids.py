"""The ids of lines and of their jobs, and which line has which."""

from __future__ import annotations

import hashlib
import json
import re
from array import array
from typing import Any

from turnout.batch.line import Asked, Format, Line
from turnout.result import Problem

MAX_ID_CHARS = 512
HASH_BITS = 2**60 - 1
"""Of the hashes by which ids are told apart. Among a million, two are taken for one with a probability of 10⁻⁶."""
_LEADING_ID = re.compile(rb'\s*\{\s*"(?:custom_id|id)"\s*:\s*("(?:[^"\\]|\\.)*")')


def job_id(batch: str, line: Line, payload: str, dedupe: bool = False) -> str:
    """The same line of the same batch always gives the same id, so that a rerun finds its job.

    payload: the canonical JSON of its request. dedupe: lines that ask for the very same answer share one job.
    """
    which = f"{line.url}\0{line.base64}" if dedupe else line.number
    return hashlib.sha256(f"{batch}\0{which}\0{payload}".encode()).hexdigest()[:32]


def short(job_id: str) -> int:
    """Enough of it to tell a batch's jobs apart, in little memory."""
    return int(job_id[:15], 16)


class LineByHash:
    """Line numbers, from 1, by the hash of what they have: open addressing, in a third of a dict's memory."""

    def __init__(self) -> None:
        self._empty(1024)

    def get(self, hash: int) -> int:
        """0: there is none."""
        return self._lines[self._slot(hash)]

    def put(self, hash: int, line: int) -> None:
        slot = self._slot(hash)
        self._count += not self._lines[slot]
        self._hashes[slot], self._lines[slot] = hash, line
        if 3 * self._count > 2 * len(self._lines):
            known = zip(self._hashes, self._lines, strict=True)
            self._empty(2 * len(self._lines))
            for hash, line in known:
                if line:
                    self.put(hash, line)

    def _empty(self, slots: int) -> None:
        self._count, self._hashes, self._lines = 0, array("Q", bytes(8 * slots)), array("q", bytes(8 * slots))

    def _slot(self, hash: int) -> int:
        """Where it is, or where it belongs."""
        hashes, lines, slots = self._hashes, self._lines, len(self._lines)
        slot = hash % slots
        while lines[slot] and hashes[slot] != hash:
            slot = (slot + 1) % slots
        return slot


class Uniqueness:
    """Remembers which line used an id first."""

    def __init__(self) -> None:
        self._first = LineByHash()

    def note(self, custom_id: str | int | None, number: int) -> int:
        """The line that used it first: this one, or an earlier one."""
        if custom_id is None:
            return number
        id = hash((type(custom_id), custom_id)) & HASH_BITS
        if first := self._first.get(id):
            return first
        self._first.put(id, number)
        return number

    def check(self, line: Line, asked: Asked) -> Asked:
        """What it asks; or a problem, if an earlier line has its id."""
        first = self.note(line.custom_id, line.number)
        if first == line.number or isinstance(asked, Problem):
            return asked
        used = f"id {line.custom_id!r} was used on line {first} already; ids must be unique"
        return Problem(code="duplicate_custom_id", message=f"line {line.number}: {used}")


def usable_id(value: Any) -> str | int | None:
    """The value, if it can be the id of a line."""
    if isinstance(value, str):
        return value if 0 < len(value) <= MAX_ID_CHARS and value.isprintable() else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def legible_id(raw: bytes, format: Format) -> str | int | None:
    """The id of any line, also of one that can't be run: what it opens with, or its field; never a guess."""
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
