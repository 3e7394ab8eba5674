"""Lines of an input that may keep one waiting: standard input, or a pipe."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from queue import Empty, Queue

from turnout.batch.line import RawLine
from turnout.batch.source import Source

AHEAD = 64
"""Lines that are read ahead."""
LATE_S = 0.01
"""How long a line is waited for until it is called late."""


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
    while True:
        try:
            found = lines.get(timeout=LATE_S)
        except Empty:
            yield None
            continue
        if found is None:
            return
        if isinstance(found, BaseException):
            raise found
        yield found
