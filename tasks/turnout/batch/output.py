"""A batch's output: put together from its journal, and under its name only when it is whole and on disk."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from turnout.batch.journal import Journal, writing
from turnout.result import JobStatus


def write_output(journal: Journal, path: str, errors: str | None = None, in_order: bool = True) -> None:
    """Write the lines of output, in the order of the input or in that in which they came. Raises Unwritable.

    path: `-` for standard output. errors: a file of their own for lines without an answer.
    """
    journal.sync()
    advice = f"; all results are in {journal.path}, and the same command goes on"
    with contextlib.ExitStack() as stack:
        answers = sys.stdout.buffer if path == "-" else stack.enter_context(replacing(path, advice))
        others = stack.enter_context(replacing(errors, advice)) if errors else answers
        for entry, rendered in journal.entries(in_order):
            (answers if entry["status"] == JobStatus.SUCCEEDED else others).write(rendered)
        answers.flush()


@contextlib.contextmanager
def replacing(path: str, advice: str = "") -> Iterator[IO[bytes]]:
    """A file that takes its name when it is whole and on disk; cut off before, it leaves nothing. Raises Unwritable."""
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
