"""What the three wire formats have in common: a refusal, and the protocol to implement."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from turnout_workers.simulator.answers import Answer, Call

STATUS = {
    "invalid": 400,
    "unauthorized": 401,
    "not_found": 404,
    "context_length": 400,
    "rate_limited": 429,
}
"""Statuses of refusals; a fault names its own."""


@dataclass(eq=False)
class Problem(Exception):
    """A refusal, by kind; each wire format has its own envelope for it."""

    kind: str
    message: str
    status: int | None = None
    """None: that of the kind."""
    retry_after_s: float | None = None
    exceeded: tuple[str, int] | None = None
    """Name and value of the limit."""


class Wire(Protocol):
    """One wire format. Paths come without the provider's base path and version."""

    statuses: Mapping[str, int] = STATUS
    request_id_header: str = ""
    """Empty: there is none."""
    sends_retry_after: bool = True
    """Whether the header `retry-after` is sent."""

    def parse(self, path: str, body: Mapping[str, Any]) -> Call:
        """Raises Problem, KeyError, TypeError, ValueError or AttributeError on a body it can't read."""

    def body(self, call: Call, answer: Answer) -> dict[str, Any]: ...

    def stream(self, call: Call, answer: Answer) -> Iterator[tuple[int, bytes]]:
        """Events, each with the number of tokens that the model generates for it."""

    def models(self, names: Iterable[str]) -> dict[str, Any]:
        """The answer to `GET models`."""

    def error(self, problem: Problem, status: int, request_id: str) -> dict[str, Any]: ...


def encode(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def event(data: Mapping[str, Any], name: str | None = None) -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: ".encode() + encode(data) + b"\n\n"


def content_text(content: Any) -> str:
    """The text of a message's content: a string, or parts of which some hold `text`."""
    if isinstance(content, str):
        return content
    return "".join(str(p.get("text") or p.get("content") or "") for p in content or () if isinstance(p, dict))
