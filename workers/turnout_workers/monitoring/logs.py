"""A worker's log: text or JSON, one line per event, with the job it is about, and limited in rate."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from typing import Any, Literal

from turnout.printable import printable
from turnout_workers.monitoring import tracing
from turnout_workers.providers.base import current_job

MAX_LINES = 50
"""Most lines per second from one place in the code."""
TEXT_FORMAT = "%(asctime)s %(levelname)s %(name)s [%(job)s] %(message)s%(left_out)s"
CHATTY = ("celery.worker.strategy", "celery.app.trace", "aiohttp.access", "celery.worker.consumer.connection")
"""They log a line per job or call, which the ledger records better, or one a second while Redis takes no writes."""

current_attempt: ContextVar[tuple[int, str] | None] = ContextVar("current_attempt", default=None)
"""The current job's attempt under way, else its last one here: its number, from 1, and the provider."""


def at_attempt(lease_id: str, provider: str) -> None:
    """From here on, log lines are about the attempt with this lease."""
    current_attempt.set((int(lease_id.rpartition(":")[2]) + 1, provider))


class AddJob(logging.Filter):
    """Adds the current job, attempt and trace to a line. `extra={"job": …}` names another job."""

    def filter(self, record: logging.LogRecord) -> bool:
        if not hasattr(record, "job"):
            record.job = current_job.get() or "-"
            record.attempt, record.provider = current_attempt.get() or (None, None)
            record.trace_id = tracing.trace_id()
        return True


class FloodFilter(logging.Filter):
    """Lets `lines` lines per second through from each place in the code. The first line after that second says how many
    were left out."""

    def __init__(self, lines: int = MAX_LINES, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._lines = lines
        self._clock = clock
        self._seconds: dict[tuple[str, int], tuple[float, int]] = {}
        """By place: when its second began, and the number of lines since."""

    def filter(self, record: logging.LogRecord) -> bool:
        place, now = (record.pathname, record.lineno), self._clock()
        began, before = self._seconds.get(place, (now, 0))
        record.left_out = ""
        if now - began >= 1:
            if before > self._lines:
                record.left_out = f" (and {before - self._lines} more like it, left out)"
            began, before = now, 0
        self._seconds[place] = began, before + 1
        return before < self._lines


class TextFormatter(logging.Formatter):
    """One line per event, followed by an indented traceback. Foreign text in it, such as an id, can neither forge a
    line nor control the terminal. Times are those that `turnout explain` shows."""

    converter = staticmethod(time.gmtime)
    default_msec_format = "%s.%03d UTC"

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        return "\n".join(f"  {printable(line)}" for line in super().formatException(ei).splitlines())


class JsonFormatter(logging.Formatter):
    """One object per line: `at`, `level`, `logger`, `event`, and if known `job`, `attempt`, `provider`, `trace_id` and
    `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage() + getattr(record, "left_out", ""),
        }
        for name in ("job", "attempt", "provider", "trace_id"):
            if (value := getattr(record, name, None)) not in (None, "", "-"):
                line[name] = value
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure(level: int | str, form: Literal["text", "json"], path: str | None = None) -> None:
    """Set up the logging of this process: to standard error, or to a file, which may be rotated."""
    handler = WatchedFileHandler(path, encoding="utf-8") if path else logging.StreamHandler(sys.stderr)
    handler.addFilter(AddJob())
    handler.addFilter(FloodFilter())
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter(TEXT_FORMAT))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
