"""Log lines of a worker: readable or JSON, one an event, with the job they are of, and never a flood of them."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from contextvars import ContextVar
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
        self._kinds: dict[tuple[str, int], tuple[float, int]] = {}
        """By place in the code, so that it can't grow with what is logged: since when, and how many."""
        self._held: dict[tuple[str, int], tuple[float, int, logging.LogRecord]] = {}
        """Of those that were not let through: since when, how many before the last one, and that."""

    def filter(self, record: logging.LogRecord) -> bool:
        now, kind = self._clock(), (record.pathname, record.lineno)
        for flooded, (since, more, last) in list(self._held.items()):
            if now - since >= 1 and self._held.pop(flooded, None) is not None:
                last.left_out = f" (and {more} more like it, left out)" if more else ""
                self._tell(last)
        since, count = self._kinds.get(kind, (now, 0))
        if now - since >= 1:
            since, count = now, 0
        self._kinds[kind] = since, count + 1
        record.left_out = ""
        if count < self._lines:
            return True
        self._held[kind] = since, count - self._lines, record
        return False


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
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
