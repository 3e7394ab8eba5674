"""A batch's output: it gets its name only when it is complete and on disk."""

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
    """Raises Unwritable if outputs would replace their input, each other, or something that isn't a regular file."""
    seen = {} if source == "-" else {os.path.realpath(source): "the input"}
    for path, name in ((output, "the output"), (errors, "the file of errors")):
        if path is None or path == "-":
            continue
        with writing(path), contextlib.suppress(FileNotFoundError):
            os.stat(path)  # fails for a loop of symbolic links, for example
        target = Path(path)  # not resolved: a pipe has no path of its own
        if (target.exists() and not target.is_file()) or path.startswith(("/dev/std", "/dev/fd/", "/proc/")):
            raise Unwritable(f"can't write {path}: it is not a regular file (- is standard output)")
        if (folder := target.resolve().parent).exists() and not os.access(folder, os.W_OK):
            raise Unwritable(f"can't write {path}: its folder can't be written")
        for written in (path, f"{target.resolve()}.tmp", f"{path}.journal"):
            if (other := seen.setdefault(os.path.realpath(written), name)) is not name:
                raise Unwritable(f"{written} is {other}, and would be overwritten; choose another path for {name}")


def write_output(
    lines: Iterable[tuple[bool, bytes]], path: str, errors: str | None = None, advice: str = ""
) -> Counter[bool]:
    """Write lines of output, each with whether it has an answer. Counts both kinds. Raises Unwritable.

    path: `-` for standard output. errors: a separate path for lines without an answer. advice: added to the error.
    """
    written: Counter[bool] = Counter()
    with contextlib.ExitStack() as stack:

        def opened(path: str) -> Callable[[bytes], object]:
            return stack.enter_context(_standard_output(advice) if path == "-" else _replacing(path, advice))

        write_answer = opened(path)
        write_error = write_answer if errors in (None, path) else opened(errors)
        for answered, line in lines:
            (write_answer if answered else write_error)(line)
            written[answered] += 1
    return written


@contextlib.contextmanager
def _standard_output(advice: str) -> Iterator[Callable[[bytes], object]]:
    # Not `sys.stdout`, which at Python's exit would try again to write what could not be written.
    with writing("standard output", advice), open(1, "wb", closefd=False) as file:
        yield file.write


@contextlib.contextmanager
def _replacing(path: str, advice: str) -> Iterator[Callable[[bytes], object]]:
    """Writes a file that gets its name when it is complete and on disk. If interrupted, it leaves nothing. A symbolic
    link stays one, and the permissions of a replaced file are kept."""
    target = Path(path).resolve()
    temporary = Path(f"{target}.tmp")
    try:
        with writing(path, advice):
            target.parent.mkdir(parents=True, exist_ok=True)
            earlier = target.stat() if target.exists() else None
            with open(temporary, "wb", opener=partial(os.open, mode=0o600 if earlier else 0o666)) as file:
                yield file.write
                file.flush()
                if earlier:
                    with contextlib.suppress(OSError):  # not every file system has permissions
                        os.fchmod(file.fileno(), stat.S_IMODE(earlier.st_mode))
                os.fsync(file.fileno())
            temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):  # this very file's error was already raised
            temporary.unlink()
        raise
