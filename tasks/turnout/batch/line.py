"""A line of a batch file: its format, what holds where it says nothing, and what its result needs to know of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from pydantic import JsonValue

from turnout.request import InferenceRequest
from turnout.result import Problem


class Format(StrEnum):
    PLAIN = "plain"
    OPENAI = "openai"
    TEXT = "text"


@dataclass(frozen=True, slots=True)
class Defaults:
    """What holds for every line that doesn't say otherwise: fields of the request and of its constraints."""

    request: Mapping[str, JsonValue] = field(default_factory=dict)
    constraints: Mapping[str, JsonValue] = field(default_factory=dict)


MAX_LINE_BYTES = 1_000_000
"""Of a line, if its source isn't told otherwise."""


@dataclass(frozen=True, slots=True)
class RawLine:
    """A line as it stands. One that is too long is cut off one byte after the longest that a line may be."""

    number: int
    """From 1, as an editor counts."""
    data: bytes
    format: Format
    flaw: str = ""
    """What makes it unusable, if its source knows already."""
    max_bytes: int = MAX_LINE_BYTES

    def digest(self, before: int = 0) -> int:
        """64 bits that tell whether the line is still the same one. before: how many like it come before it."""
        known = self.data + self.flaw.encode() + (b"\n%d" % before if before else b"")
        return int.from_bytes(hashlib.blake2b(known, digest_size=8).digest(), signed=True)


@dataclass(frozen=True, slots=True)
class Line:
    """A line without what it asks: enough to write its result."""

    number: int
    custom_id: str | int | None = None
    """The caller's own id (`custom_id`, or `id` in plain lines), given back with the result."""
    format: Format = Format.PLAIN
    url: str = ""
    """OpenAI format: the endpoint, on which the shape of the answer depends."""
    digest: int = 0
    """By which a journal knows it again."""

    @property
    def id(self) -> str | int:
        return self.number if self.custom_id is None else self.custom_id


Asked = InferenceRequest | Problem
"""What a line asks, or why it can't be run. A problem holds nothing of the line's content but names of fields."""


class Unusable(Exception):
    """Why a line can't be run."""

    def __init__(self, message: str, code: str = "invalid_request") -> None:
        super().__init__(message)
        self.message, self.code = message, code
