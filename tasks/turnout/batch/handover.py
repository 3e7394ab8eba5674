"""How the lines of a detached batch are kept in Redis: an index of all of them, and the requests that are to be fed.

The index says of each line which job it is, or why it is none. The requests wait in compressed chunks, from which
workers take them. Job ids follow from batch, line and content: a chunk that is fed twice is fed once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import redis

from turnout.batch.chunk import CLOSED_BYTES, LINES, entry, packed
from turnout.batch.ids import Uniqueness, job_id
from turnout.batch.line import Asked, Format, Line
from turnout.errors import FULL, IntakeRefused
from turnout.ledger import Ledger
from turnout.request import InferenceRequest
from turnout.result import Problem

PAGE = 500
HALF_KEPT_S = 3600
"""How long a part of an input waits for the rest; so much, and no longer, is left by a submission that was killed."""


@dataclass(frozen=True, slots=True)
class Handed:
    """A line of the input, without its request."""

    line: Line
    job: str = ""
    """Its job's id; empty for a line that can't be run."""
    shared: bool = False
    """Whether the job is that of an identical line before it."""
    problem: Problem | None = None
    """Why it can't be run."""

    def to_json(self) -> str:
        line, problem = self.line, self.problem
        rest = [problem.code, problem.message] if problem else [line.url, int(self.shared)]
        return json.dumps([line.number, line.custom_id, line.format, self.job, *rest], separators=(",", ":"))

    @classmethod
    def of_json(cls, text: bytes) -> Self:
        number, custom_id, format, job, *rest = json.loads(text)
        if not job:
            return cls(Line(number, custom_id, Format(format)), problem=Problem(code=rest[0], message=rest[1]))
        return cls(Line(number, custom_id, Format(format), rest[0]), job, bool(rest[-1]))


@dataclass(slots=True)
class HandOver:
    """Puts an input into Redis, chunk by chunk."""

    client: redis.Redis
    ledger: Ledger
    batch: str
    dedupe: bool
    """Ask identical requests once."""
    _index: list[str] = field(default_factory=list)
    _requests: list[bytes] = field(default_factory=list)
    _jobs: Uniqueness = field(default_factory=Uniqueness)

    def all(self, lines: Iterable[tuple[Line, Asked]]) -> dict[str, int]:
        """Returns how many `lines` there are, how many `jobs` of their own, and how many `shared` another's."""
        counts = {"lines": 0, "jobs": 0, "shared": 0}
        for line, asked in lines:
            handed = Handed(line, problem=asked) if isinstance(asked, Problem) else self._job(line, asked)
            self._index.append(handed.to_json())
            counts["lines"] += 1
            counts["jobs"] += handed.problem is None and not handed.shared
            counts["shared"] += handed.shared
            if len(self._index) >= LINES or sum(map(len, self._requests)) >= CLOSED_BYTES:
                self._put()
        self._put()
        return counts

    def _job(self, line: Line, request: InferenceRequest) -> Handed:
        payload = request.canonical_json()
        job = job_id(self.batch, line.url if self.dedupe else line.number, payload)
        if self.dedupe and self._jobs.note(job, line.number) != line.number:
            return Handed(line, job, shared=True)
        self._requests.append(entry(job, payload))
        return Handed(line, job)

    def _put(self) -> None:
        keys = self.ledger.keys
        if self.client.exists(keys.intake):
            raise IntakeRefused(FULL, retryable=True)
        with self.client.pipeline() as pipe:
            if self._requests:
                chunk = packed(self._requests, self.batch, self.ledger.keyring)
                pipe.rpush(keys.batch_input(self.batch), chunk)
            if self._index:
                pipe.rpush(keys.batch_lines(self.batch), *self._index)
            pipe.expire(keys.batch_input(self.batch), HALF_KEPT_S)
            pipe.expire(keys.batch_lines(self.batch), HALF_KEPT_S)
            pipe.execute()
        self._requests.clear()
        self._index.clear()


def pages(client: redis.Redis, key: str) -> Iterator[list[Handed]]:
    """The index, some hundred lines at a time."""
    start = 0
    while found := client.lrange(key, start, start + PAGE - 1):
        texts: Any = found
        yield [Handed.of_json(text) for text in texts]
        start += PAGE
