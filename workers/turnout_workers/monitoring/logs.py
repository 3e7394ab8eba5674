"""Log lines of a worker: readable or JSON, one an event, with the job they are of, and never a flood of them."""

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

LINES = 50
"""Most lines of one kind, a place in the code, in each second."""
READABLE = "%(asctime)s %(levelname)s %(name)s [%(job)s] %(message)s%(left_out)s"
CHATTY = ("celery.worker.strategy", "celery.app.trace", "aiohttp.access", "celery.worker.consumer.connection")
"""A line a job or call, which the ledger tells better; or one a second, while Redis takes no writes."""

current_attempt: ContextVar[tuple[int, str] | None] = ContextVar("current_attempt", default=None)
"""Of the job at work: the attempt under way, or else its last one here. Its number, from 1, and the provider."""


def at_attempt(lease_id: str, provider: str) -> None:
    """From here on: the attempt of that lease."""
    current_attempt.set((int(lease_id.rpartition(":")[2]) + 1, provider))


class Job(logging.Filter):
    """Gives a line the job that it is of, the attempt and the trace. `extra={"job": …}` names another job."""

    def filter(self, record: logging.LogRecord) -> bool:
        if not hasattr(record, "job"):
            record.job = current_job.get() or "-"
            record.attempt, record.provider = current_attempt.get() or (None, None)
            record.trace_id = tracing.trace_id()
        return True


class Flood(logging.Filter):
    """Lets so many lines of a kind, a place in the code, through each second. The kind's next line after that second
    tells how many of it were left out."""

    def __init__(self, lines: int = LINES, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._lines = lines
        self._clock = clock
        self._seconds: dict[tuple[str, int], tuple[float, int]] = {}
        """Of each kind, when its second began, and how many lines have come since."""

    def filter(self, record: logging.LogRecord) -> bool:
        kind, now = (record.pathname, record.lineno), self._clock()
        began, before = self._seconds.get(kind, (now, 0))
        record.left_out = ""
        if now - began >= 1:
            if before > self._lines:
                record.left_out = f" (and {before - self._lines} more like it, left out)"
            began, before = now, 0
        self._seconds[kind] = began, before + 1
        return before < self._lines


class Readable(logging.Formatter):
    """One line an event, and after it a traceback, set in. What comes with a message, its id say, neither forges
    a line nor commands the terminal in which it is read. Its time is that which `turnout explain` tells."""

    converter = staticmethod(time.gmtime)
    default_msec_format = "%s.%03d UTC"

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        return "\n".join(f"  {printable(line)}" for line in super().formatException(ei).splitlines())


class Json(logging.Formatter):
    """One object a line: `at`, `level`, `logger`, `event`, and `job`, `attempt`, `provider`, `trace_id` and `exception`
    where there is one."""

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
    """Set up the logging of this process: to standard error, or to a file, which others may move away."""
    handler = WatchedFileHandler(path, encoding="utf-8") if path else logging.StreamHandler(sys.stderr)
    handler.addFilter(Job())
    handler.addFilter(Flood())
    handler.setFormatter(Json() if form == "json" else Readable(READABLE))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
