"""A batch's output: under its name only when it is whole and on disk."""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from turnout.batch.journal import writing


def write_output(
    lines: Iterable[tuple[bool, bytes]], path: str, errors: str | None = None, advice: str = ""
) -> Counter[bool]:
    """Write lines of output, each with whether it has an answer. Counts both kinds. Raises Unwritable.

    path: `-` for standard output. errors: a file of their own for lines without an answer. advice: for the error.
    """
    written: Counter[bool] = Counter()
    with contextlib.ExitStack() as stack:
        answers = sys.stdout.buffer if path == "-" else stack.enter_context(_replacing(path, advice))
        others = stack.enter_context(_replacing(errors, advice)) if errors else answers
        for answered, line in lines:
            (answers if answered else others).write(line)
            written[answered] += 1
        answers.flush()
    return written


@contextlib.contextmanager
def _replacing(path: str, advice: str) -> Iterator[IO[bytes]]:
    """A file that takes its name when it is whole and on disk; cut off before, it leaves nothing."""
    temporary = Path(f"{path}.tmp")
    try:
        with writing(path, advice):
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
