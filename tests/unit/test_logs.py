"""Log lines carry their job, are JSON where that is wanted, and never flood."""

from __future__ import annotations

import json
import logging
import warnings
from contextvars import copy_context

import pytest

from turnout_workers.monitoring import logs
from turnout_workers.providers.base import current_job


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def line(number: int = 0, lineno: int = 1) -> logging.LogRecord:
    return logging.LogRecord(
        "turnout_workers.attempts.attempt", logging.WARNING, "a.py", lineno, "job %d", (number,), None
    )


def test_a_flood_of_one_kind_is_cut_and_told_with_its_next_line() -> None:
    clock = Clock()
    flood = logs.FloodFilter(3, clock)
    assert [flood.filter(line(number)) for number in range(10)] == [True] * 3 + [False] * 7
    assert flood.filter(line(lineno=2)), "of another kind"
    clock.now = 1.0
    later, other = line(10), line(lineno=2)
    assert flood.filter(later)
    assert flood.filter(other)
    events = [json.loads(logs.JsonFormatter().format(record))["event"] for record in (later, other)]
    assert events == ["job 10 (and 7 more like it, left out)", "job 0"]
    assert [flood.filter(line(number)) for number in range(11, 14)] == [True, True, False], "in each second"


def test_a_json_line_has_its_job_and_its_traceback_in_one_line() -> None:
    current_job.set("job-1")
    try:
        raise ValueError("no\nsecrets")
    except ValueError as error:
        record = line()
        record.exc_info = (type(error), error, error.__traceback__)
    assert logs.AddJob().filter(record)
    text = logs.JsonFormatter().format(record)
    assert "\n" not in text
    told = json.loads(text)
    assert (told["level"], told["job"], told["event"]) == ("warning", "job-1", "job 0")
    assert "ValueError: no\nsecrets" in told["exception"]
    current_job.set(None)


def test_a_readable_line_tells_its_time_as_explain_does_to_the_zone() -> None:
    record = line()
    record.created, record.msecs = 1_795_847_760.123, 123.0
    record.job, record.left_out = "job-1", ""
    text = logs.TextFormatter(logs.TEXT_FORMAT).format(record)
    assert text == "2026-11-28 06:36:00.123 UTC WARNING turnout_workers.attempts.attempt [job-1] job 0"


def test_nothing_that_came_in_a_message_forges_a_line_or_commands_a_terminal() -> None:
    order = "\n2026-11-27 00:00:00.000 UTC CRITICAL forged [-] line\x1b]0;obey\x07\x9b2J"
    try:
        raise ValueError(order)
    except ValueError as error:
        record = logging.LogRecord("a", logging.INFO, "a.py", 1, "job %s", (order,), (type(error), error, None))
    record.job, record.left_out = order, ""
    first, *traceback = logs.TextFormatter(logs.TEXT_FORMAT).format(record).split("\n")
    assert first.count("CRITICAL forged [-] line ]0;obey  2J") == 2
    assert all(line.startswith("  ") and line.isprintable() for line in [f"  {first}", *traceback])
    assert len(traceback) == 2


@pytest.mark.parametrize("form", ["text", "json"])
def test_both_formats_write_a_line(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before = list(root.handlers), root.level
    logging.captureWarnings(False)  # whoever set it before left it to a function that pytest has taken back
    try:
        logs.configure("INFO", form)  # type: ignore[arg-type]
        logging.getLogger("turnout_workers.attempts.attempt").info("it %s", "goes")
        warnings.warn("mind this", stacklevel=1)
    finally:
        root.handlers, root.level = before[0], before[1]
        logging.captureWarnings(False)
    told = capsys.readouterr().err
    assert "it goes" in told
    assert "py.warnings" in told
    assert "mind this" in told


def test_a_json_line_names_the_attempt_and_its_provider_and_another_job_where_it_is_told() -> None:
    def told(**extra: str) -> dict[str, object]:
        record = line()
        vars(record).update(extra)
        logs.AddJob().filter(record)
        found: dict[str, object] = json.loads(logs.JsonFormatter().format(record))
        return {name: found[name] for name in ("job", "attempt", "provider") if name in found}

    def of_an_attempt() -> None:
        current_job.set("job-1")
        logs.current_attempt.set((2, "groq"))
        assert told() == {"job": "job-1", "attempt": 2, "provider": "groq"}

    copy_context().run(of_an_attempt)
    assert told() == {}
    assert told(job="job-9") == {"job": "job-9"}
