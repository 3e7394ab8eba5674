"""A batch's results so far, kept so that neither a kill nor a full disk loses a finished line.

An SQLite file next to the output (`OUT.journal`) has each result as it comes. A rerun goes on with what is missing:
lines that were edited or added since, and failed ones if they are to be run again. An answered line is recognized by
its content, wherever it stands. The file stays when all lines have an answer, so that the same command never pays for
one twice.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from turnout.batch.tally import Entry, Tally
from turnout.errors import TurnoutError
from turnout.result import JobStatus

TABLES = """
CREATE TABLE IF NOT EXISTS run (batch, options, ended);
CREATE TABLE IF NOT EXISTS results (line INTEGER UNIQUE, digest INTEGER, job INTEGER, status, entry, rendered);
CREATE INDEX IF NOT EXISTS by_digest ON results (digest) WHERE status = 'succeeded';
CREATE INDEX IF NOT EXISTS by_job ON results (job) WHERE job IS NOT NULL;
"""
"""`line` is null if a result no longer counts, except for its money, and as the answer of a line that may return."""
RUN = "run-"
"""Prefix of the ids of batches that a `turnout run` feeds."""
GOES_ON = "; what is done is kept, and the same command goes on"


class Unwritable(TurnoutError):
    """The results can't be written."""


class Journal:
    """One batch's results. Use it as a context manager, which locks it, and call `begin` first."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.batch = ""
        """The batch's id, as unique as its journal; '' until one has begun."""
        self.tally = Tally()
        """Of all results in it."""
        self.ended_before = False
        """Whether an earlier run came to its end."""

    def __enter__(self) -> Journal:
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=0)
            try:
                self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
                self._db.executescript(f"BEGIN EXCLUSIVE; {TABLES} COMMIT")
                (self.batch,) = self._db.execute("SELECT batch FROM run").fetchone() or ("",)
            except sqlite3.DatabaseError as error:
                self._db.close()
                if error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
                    raise Unwritable(f"another `turnout run` is writing {self.path}") from None
                raise
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(sqlite3.Error):  # a full disk, which `write` or `sync` has reported
            self._db.commit()
        self._db.close()

    def forget(self) -> None:
        """Drop everything: the next `begin` starts a new batch."""
        with writing(self.path):
            self._db.executescript("BEGIN; DELETE FROM run; DELETE FROM results; COMMIT")

    def begin(self, options: Mapping[str, Any], retry_failed: bool = False) -> Tally:
        """Continue an earlier run, or begin a new batch. Returns its tally, which is kept up to date.

        options: must be the same in all runs of a batch, because the jobs in flight depend on them; only after a run
        has come to its end may they change for lines that are run again. Raises Unwritable if they have changed
        otherwise. retry_failed: leave out lines that have no answer.
        """
        now = json.loads(json.dumps(dict(options)))
        batch, stored, ended = next(self._rows("SELECT * FROM run"), (f"{RUN}{uuid4().hex[:12]}", None, True))
        self.ended_before = bool(ended)
        before = now if stored is None else json.loads(stored)
        changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        if changed and not (ended and retry_failed):
            listed = ", ".join(f"{name} ({before.get(name)}, now {now.get(name)})" for name in changed)
            raise Unwritable(
                f"{self.path} belongs to a run with other options: {listed}. Use the same options, or another output "
                "file. --anew, and after a complete run --retry-failed, may change them."
            )
        self.batch = batch
        with writing(self.path, GOES_ON):
            self._db.execute("DELETE FROM run")
            self._db.execute("INSERT INTO run VALUES (?, ?, FALSE)", (batch, json.dumps(now)))
            if retry_failed:
                self._db.execute("UPDATE results SET line = NULL WHERE status != 'succeeded'")
            for line, entry in self._db.execute("SELECT line, entry FROM results"):
                self.tally.pay(numbers := json.loads(entry))
                if line is not None:
                    self.tally.count(numbers)
        self.sync()
        self.tally.resumed = self.tally.finished
        return self.tally

    def has(self, line: int, digest: int) -> bool:
        """Whether this very line has its result."""
        return any(self._rows("SELECT 1 FROM results WHERE line = ? AND digest = ?", line, digest))

    def move(self, line: int, digest: int, placed: Callable[[bytes], bytes]) -> bool:
        """Give a line the answer that it had elsewhere in the input, if there is one.

        placed: makes the line of output as it must read here.
        """
        query = "SELECT rowid, line, entry, rendered FROM results WHERE digest = ? AND status = 'succeeded'"
        result = next(self._rows(query, digest), None)
        if result is None:
            return False
        row, before, entry, rendered = result
        with writing(self.path, GOES_ON):
            moved = (line, placed(rendered), row)
            self._db.execute("UPDATE results SET line = ?, rendered = ? WHERE rowid = ?", moved)
        if before is None:
            self.tally.count(json.loads(entry))
            self.tally.resumed += 1
        return True

    def of_job(self, job: int) -> tuple[str, bytes] | None:
        """The status of a job's line, and its line of output, if `write` named the job."""
        query = "SELECT status, rendered FROM results WHERE job = ? AND line IS NOT NULL"
        return next(self._rows(query, job), None)

    def output(self, in_order: bool = True) -> Iterator[tuple[bool, bytes]]:
        """The lines of output, each with whether it has an answer: in the input's order, or as they came."""
        query = "SELECT status, rendered FROM results WHERE line IS NOT NULL ORDER BY "
        for status, rendered in self._rows(query + ("line" if in_order else "rowid")):
            yield status == JobStatus.SUCCEEDED, rendered

    def drop(self, lines: range) -> None:
        """Forget the results of these lines: they have changed, are gone, or are to be run again."""
        if not lines:
            return
        bounds = (lines.start, lines.stop)
        dropped = list(self._rows("SELECT entry FROM results WHERE line >= ? AND line < ?", *bounds))
        for (entry,) in dropped:
            self.tally.count(json.loads(entry), -1)
            self.tally.resumed -= 1
        if dropped:
            with writing(self.path, GOES_ON):
                self._db.execute("UPDATE results SET line = NULL WHERE line >= ? AND line < ?", bounds)

    def write(self, line: int, digest: int, entry: Entry, rendered: bytes, job: int | None = None) -> None:
        """Add one line's result. It is safe after the next `sync`. job: by which `of_job` finds it."""
        row = (line, digest, job, entry["status"], json.dumps(entry, separators=(",", ":")), rendered)
        with writing(self.path, GOES_ON):
            self._db.execute("INSERT INTO results VALUES (?, ?, ?, ?, ?, ?)", row)
        self.tally.count(entry)
        self.tally.pay(entry)

    def end(self) -> None:
        """Note that no job of the batch is in flight any more."""
        with writing(self.path, GOES_ON):
            self._db.execute("UPDATE run SET ended = TRUE")
        self.sync()

    def sync(self) -> None:
        """Write everything to disk."""
        with writing(self.path, GOES_ON):
            self._db.commit()

    def _rows(self, query: str, *values: int) -> Iterator[Any]:
        with writing(self.path, GOES_ON):
            # `yield from`, left early, would close a cursor of a closed journal.
            for row in self._db.execute(query, values):  # noqa: UP028
                yield row


@contextmanager
def writing(path: object, advice: str = "") -> Iterator[None]:
    """Raises Unwritable for errors of a file."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            raise Unwritable(
                f"{path} is not a journal of this release, or damaged. Move it away, or choose another output file; "
                "then all lines are run again."
            ) from None
        raise Unwritable(f"can't write {path}: {getattr(error, 'strerror', error)}{advice}") from None
