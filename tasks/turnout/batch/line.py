"""A line of a batch file: its format, the defaults for what it leaves out, and what its result needs to know of it."""

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
    """Fields of the request and of its constraints for every line that doesn't set them."""

    request: Mapping[str, JsonValue] = field(default_factory=dict)
    constraints: Mapping[str, JsonValue] = field(default_factory=dict)


MAX_LINE_BYTES = 1_000_000
"""Longest line of an input by default."""


@dataclass(frozen=True, slots=True)
class RawLine:
    """A line as it stands. One that is too long is cut off one byte after the longest allowed."""

    number: int
    """From 1, as an editor counts."""
    data: bytes
    format: Format
    flaw: str = ""
    """What makes it unusable, if its source already knows."""
    max_bytes: int = MAX_LINE_BYTES

    def digest(self, before: int = 0) -> int:
        """64 bits that show whether the line is still the same. before: how many identical lines come before it."""
        content = self.data + self.flaw.encode() + (b"\n%d" % before if before else b"")
        return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), signed=True)


@dataclass(frozen=True, slots=True)
class Line:
    """A line without its request: enough to write its result."""

    number: int
    custom_id: str | int | None = None
    """The caller's own id (`custom_id`, or `id` in plain lines), returned with the result."""
    format: Format = Format.PLAIN
    url: str = ""
    """OpenAI format: the endpoint, on which the shape of the answer depends."""
    digest: int = 0
    """By which a journal recognizes it."""

    @property
    def id(self) -> str | int:
        return self.number if self.custom_id is None else self.custom_id


RequestOrProblem = InferenceRequest | Problem
"""A line's request, or why it can't be run. A problem holds nothing of the line's content but names of fields."""


class BadLine(Exception):
    """Why a line can't be run."""

    def __init__(self, message: str, code: str = "invalid_request") -> None:
        super().__init__(message)
        self.message, self.code = message, code
