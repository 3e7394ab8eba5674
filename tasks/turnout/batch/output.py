"""A batch's output: under its name only when it is whole and on disk."""

from __future__ import annotations

import contextlib
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from turnout.batch.journal import Unwritable, writing


def check_places(output: str, errors: str | None = None, source: str = "-") -> None:
    """Raises Unwritable if output would replace its own input, each other, or what is no regular file."""
    seen = {} if source == "-" else {os.path.realpath(source): "the input"}
    for path, name in ((output, "the output"), (errors, "the file of errors")):
        if path is None or path == "-":
            continue
        with writing(path), contextlib.suppress(FileNotFoundError):
            os.stat(path)  # a loop of symbolic links, say
        place = Path(path)  # not resolved: a pipe has no path of its own
        if (place.exists() and not place.is_file()) or path.startswith(("/dev/std", "/dev/fd/", "/proc/")):
            raise Unwritable(f"can't write {path}: it is no regular file (- is standard output)")
        if (folder := place.resolve().parent).exists() and not os.access(folder, os.W_OK):
            raise Unwritable(f"can't write {path}: its folder can't be written")
        for written in (path, f"{place.resolve()}.tmp", f"{path}.journal"):
            if (other := seen.setdefault(os.path.realpath(written), name)) is not name:
                raise Unwritable(f"{written} is {other}, and would be overwritten; choose another place for {name}")


def write_output(
    lines: Iterable[tuple[bool, bytes]], path: str, errors: str | None = None, advice: str = ""
) -> Counter[bool]:
    """Write lines of output, each with whether it has an answer. Counts both kinds. Raises Unwritable.

    path: `-` for standard output. errors: a place of their own for lines without an answer. advice: for the error.
    """
    written: Counter[bool] = Counter()
    with contextlib.ExitStack() as stack:

        def opened(place: str) -> Callable[[bytes], object]:
            return stack.enter_context(_standard_output(advice) if place == "-" else _replacing(place, advice))

        answer = opened(path)
        other = answer if errors in (None, path) else opened(errors)
        for answered, line in lines:
            (answer if answered else other)(line)
            written[answered] += 1
    return written


@contextlib.contextmanager
def _standard_output(advice: str) -> Iterator[Callable[[bytes], object]]:
    # Not `sys.stdout`, which would try once more at the end of Python what could not be written.
    with writing("standard output", advice), open(1, "wb", closefd=False) as file:
        yield file.write


@contextlib.contextmanager
def _replacing(path: str, advice: str) -> Iterator[Callable[[bytes], object]]:
    """Writes a file that takes its name when it is whole and on disk; cut off before, it leaves nothing. A symbolic
    link stays one, and what is replaced leaves its permissions."""
    place = Path(path).resolve()
    temporary = Path(f"{place}.tmp")
    try:
        with writing(path, advice):
            place.parent.mkdir(parents=True, exist_ok=True)
            earlier = place.stat() if place.exists() else None
            with open(temporary, "wb", opener=partial(os.open, mode=0o600 if earlier else 0o666)) as file:
                yield file.write
                file.flush()
                if earlier:
                    with contextlib.suppress(OSError):  # not every file system has permissions
                        os.fchmod(file.fileno(), stat.S_IMODE(earlier.st_mode))
                os.fsync(file.fileno())
            temporary.replace(place)
    except BaseException:
        with contextlib.suppress(OSError):  # of which was told already, of this file and no other
            temporary.unlink()
        raise
