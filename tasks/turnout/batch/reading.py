"""Reads a batch's input: yields the lines to run, and writes the results of those that can't be run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from turnout.batch.ids import Uniqueness, legible_id
from turnout.batch.journal import Journal
from turnout.batch.line import Defaults, Line, RawLine
from turnout.batch.parse import parse
from turnout.batch.render import moved, never_run, render
from turnout.batch.source import Source, SourceError
from turnout.request import InferenceRequest
from turnout.result import Problem

Refusal = Callable[[InferenceRequest], str | None]
"""Returns why no endpoint could ever serve a request; None: one could."""
ToRun = tuple[Line, InferenceRequest]


class Skipped:
    """A line that has its result."""


class NotYet:
    """No line has arrived yet."""


@dataclass(slots=True)
class Reading:
    """One reading of an input, compared with what its journal has."""

    source: Source
    journal: Journal
    defaults: Defaults
    refusal: Refusal | None
    ended: bool = False
    broken: SourceError | None = None
    """Why it ended, if the input breaks off."""

    def lines(self) -> Iterator[ToRun | Skipped | NotYet]:
        """The lines to run, each with its digest."""
        ids, digests, next_line = Uniqueness(), Uniqueness(), 1
        try:
            for raw in self.source.arriving():
                if raw is None:
                    yield NotYet()
                    continue
                digest = _digest(raw, digests)
                done = self.journal.has(raw.number, digest)
                # The input may have changed since the journal was written: this line, or blank ones before it.
                self.journal.drop(range(next_line, raw.number if done else raw.number + 1))
                next_line = raw.number + 1
                self.journal.tally.lines += 1
                if done or self.journal.move(raw.number, digest, partial(_placed, raw)):
                    ids.note(legible_id(raw.data, raw.format), raw.number)
                    yield Skipped()
                    continue
                line, asked = parse(raw, self.defaults)
                asked = ids.check(line, asked)
                if not isinstance(asked, Problem) and self.refusal and (why := self.refusal(asked)):
                    asked = Problem(code="refused", message=f"line {line.number}: {why}")
                if isinstance(asked, Problem):
                    status = "refused" if asked.code == "refused" else "invalid"
                    self.journal.write(line.number, digest, {"status": status}, render(line, never_run(asked)))
                    yield Skipped()
                else:
                    yield replace(line, digest=digest), asked
            self.journal.drop(range(next_line, sys.maxsize))
        except SourceError as error:
            self.broken = error
        self.ended = True


def nothing_to_run(source: Source, journal: Journal) -> bool:
    """Whether an earlier run came to its end, and every line of a file has its answer in place."""
    if not journal.ended_before or not source.is_regular_file or journal.tally.failed:
        return False
    digests, answered = Uniqueness(), 0
    with suppress(SourceError):  # reported when lines are run
        for raw in source:
            if not journal.has(raw.number, _digest(raw, digests)):
                return False
            answered += 1
        return answered == journal.tally.finished
    return False


def _digest(raw: RawLine, digests: Uniqueness) -> int:
    """Identifies the line. digests: those of the lines before it."""
    digest = raw.digest()
    before = digests.times(digest)
    return raw.digest(before) if before else digest


def _placed(raw: RawLine, rendered: bytes) -> bytes:
    return moved(rendered, Line(raw.number, legible_id(raw.data, raw.format), raw.format))
