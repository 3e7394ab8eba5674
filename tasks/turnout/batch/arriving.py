"""Lines of an input that may keep one waiting: standard input, or a pipe."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from queue import Empty, Queue

from turnout.batch.line import RawLine
from turnout.batch.source import Source

AHEAD = 64
"""Lines that are read ahead."""
LATE_S, GAP_S = 0.05, 0.005
"""A line is late if it isn't there LATE_S after another was called late, and GAP_S after it was asked for."""


def arriving(source: Source) -> Iterator[RawLine | None]:
    """The lines of a source; None: the next one is late. Raises SourceError.

    A thread of its own reads it: who waits for a writer can't be interrupted.
    """
    if source.waits_for_nobody:
        yield from source
        return
    lines: Queue[RawLine | BaseException | None] = Queue(AHEAD)

    def read() -> None:
        try:
            for raw in source:
                lines.put(raw)
            lines.put(None)
        except BaseException as error:
            lines.put(error)

    threading.Thread(target=read, name="reading", daemon=True).start()
    told_at = time.monotonic()
    while True:
        try:
            found = lines.get(timeout=max(told_at + LATE_S - time.monotonic(), GAP_S))
        except Empty:
            yield None
            told_at = time.monotonic()
            continue
        if found is None:
            return
        if isinstance(found, BaseException):
            raise found
        yield found
