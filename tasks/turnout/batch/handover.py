"""How the lines of a detached batch are kept in Redis: an index of all of them, and the requests to be fed.

The index has each line's job, or why it has none. The requests wait in compressed chunks, from which workers take them.
Job ids are derived from batch, line and content, so that feeding a chunk twice does nothing more.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import redis

from turnout.batch.chunk import CLOSED_BYTES, MAX_CHUNK_JOBS, MAX_ENTRY_BYTES, encoded_job, packed
from turnout.batch.ids import Uniqueness
from turnout.batch.jobs import PAGE, job_id
from turnout.batch.line import Format, Line, RequestOrProblem
from turnout.errors import FULL, IntakeRefused, TurnoutError
from turnout.ledger import Ledger
from turnout.result import Problem

PARTIAL_INPUT_TTL_S = 3600
"""How long a part of an input waits for the rest. What a killed submission leaves expires after this time."""


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One line of the input in the batch's index: its job, or why it has none."""

    line: Line
    job: str = ""
    """Its job's id; empty for a line that can't be run."""
    shared: bool = False
    """Whether it shares the job of an identical line before it."""
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


def hand_over(
    client: redis.Redis, ledger: Ledger, batch: str, lines: Iterable[tuple[Line, RequestOrProblem]], dedupe: bool
) -> dict[str, int]:
    """Put an input into Redis, chunk by chunk. Returns how many `lines` there are, how many have `jobs` of their own,
    and how many have a `shared` one. dedupe: ask identical requests once."""
    counts = {"lines": 0, "jobs": 0, "shared": 0}
    jobs, index, requests = Uniqueness(), list[str](), list[bytes]()
    for line, asked in lines:
        if isinstance(asked, Problem):
            entry = IndexEntry(line, problem=asked)
        else:
            payload = asked.canonical_json()
            job = job_id(batch, line.url if dedupe else line.number, payload)
            request = encoded_job(job, payload)
            if len(request) > MAX_ENTRY_BYTES:
                entry = IndexEntry(line, problem=_too_large(line, len(request)))
            else:
                entry = IndexEntry(line, job, shared=dedupe and jobs.note(job, line.number) != line.number)
                if not entry.shared:
                    requests.append(request)
                    counts["jobs"] += 1
        index.append(entry.to_json())
        counts["lines"] += 1
        counts["shared"] += entry.shared
        if len(index) >= MAX_CHUNK_JOBS or sum(map(len, requests)) >= CLOSED_BYTES:
            _put(client, ledger, batch, index, requests)
            index, requests = [], []
    _put(client, ledger, batch, index, requests)
    if (there := client.llen(ledger.keys.batch_lines(batch))) != counts["lines"]:
        missing = f"the first ones expired after {PARTIAL_INPUT_TTL_S // 60} minutes"
        raise TurnoutError(
            f"only {there:,} of {counts['lines']:,} lines are in Redis ({missing}): submit them again, from a file"
        )
    return counts


def _too_large(line: Line, size: int) -> Problem:
    most = f"more than the {MAX_ENTRY_BYTES:,} that can be handed over; `turnout run` takes it"
    return Problem(code="too_large", message=f"line {line.number}: its request takes {size:,} bytes, {most}")


def _put(client: redis.Redis, ledger: Ledger, batch: str, index: list[str], requests: list[bytes]) -> None:
    keys = ledger.keys
    if client.exists(keys.intake):
        raise IntakeRefused(FULL, retryable=True)
    with client.pipeline() as pipe:
        if requests:
            pipe.rpush(keys.batch_input(batch), packed(requests, batch, ledger.keyring))
        if index:
            pipe.rpush(keys.batch_lines(batch), *index)
        pipe.expire(keys.batch_input(batch), PARTIAL_INPUT_TTL_S)
        pipe.expire(keys.batch_lines(batch), PARTIAL_INPUT_TTL_S)
        pipe.execute()


def pages(client: redis.Redis, key: str) -> Iterator[list[IndexEntry]]:
    """The index, some hundred lines at a time."""
    start = 0
    while reply := client.lrange(key, start, start + PAGE - 1):
        texts: Any = reply
        yield [IndexEntry.of_json(text) for text in texts]
        start += PAGE
