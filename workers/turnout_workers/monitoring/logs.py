"""Log lines of a worker: readable or JSON, one an event, with the job they are of, and never a flood of them."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic
from typing import Any, Literal

from turnout_workers.monitoring import tracing
from turnout_workers.providers.base import current_job

LINES = 50
"""Most lines of one kind, a place in the code, in each second."""
READABLE = "%(asctime)s %(levelname)s %(name)s [%(job)s] %(message)s%(left_out)s"
CHATTY = ("celery.worker.strategy", "celery.app.trace", "aiohttp.access")
"""A line a job or call, which the ledger tells better."""

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


@dataclass(slots=True)
class _Second:
    """A second of lines of one kind: how many came, and the last of those that were not let through."""

    began: float
    lines: int = 0
    last: logging.LogRecord | None = None


class Flood(logging.Filter):
    """Lets so many lines of a kind through each second. The last of the rest is told after that second, when the next
    line of any kind comes, with how many were left out."""

    def __init__(
        self, tell: Callable[[logging.LogRecord], object], lines: int = LINES, clock: Callable[[], float] = monotonic
    ) -> None:
        super().__init__()
        self._tell = tell
        self._lines = lines
        self._clock = clock
        self._seconds: dict[tuple[str, int], _Second] = {}
        """By place in the code, so that it can't grow with what is logged."""

    def filter(self, record: logging.LogRecord) -> bool:
        now = self._clock()
        for kind, second in list(self._seconds.items()):
            if now - second.began < 1 or self._seconds.pop(kind, None) is None:
                continue
            if (last := second.last) is not None:
                more = second.lines - self._lines - 1
                last.left_out = f" (and {more} more like it, left out)" if more else ""
                self._tell(last)
        second = self._seconds.setdefault((record.pathname, record.lineno), _Second(now))
        second.lines += 1
        record.left_out = ""
        if second.lines > self._lines:
            second.last = record
        return second.lines <= self._lines


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
        if (job := getattr(record, "job", "-")) != "-":
            line["job"] = job
        for name in ("attempt", "provider", "trace_id"):
            if value := getattr(record, name, None):
                line[name] = value
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure(level: int | str, form: Literal["text", "json"]) -> None:
    """Set up the logging of this process."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(Job())
    handler.addFilter(Flood(handler.emit))
    handler.setFormatter(Json() if form == "json" else logging.Formatter(READABLE))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
