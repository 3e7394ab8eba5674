"""The pages for users, compared with the code that they describe."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import get_args

import click
import pytest
from pydantic import BaseModel

from turnout.batch.line import Line, RawLine
from turnout.batch.parse import detect, parse
from turnout.batch.render import never_run, render
from turnout.cli import STOPPED, UNUSABLE, main
from turnout.ledger.job import LIVE
from turnout.request import FinishReason, InferenceRequest, InferenceResponse, RoutingConstraints, RoutingStrategy
from turnout.result import JobResult, JobStatus, Problem
from turnout_workers import config
from turnout_workers.attempts.job import MovedOn
from turnout_workers.commands.dry_run import forecast
from turnout_workers.commands.file_options import DONE, REFUSED, SOME_FAILED
from turnout_workers.monitoring.fleet_metrics import BY_ENDPOINT
from turnout_workers.monitoring.metrics import Metrics, Recovery
from turnout_workers.routing.eligibility import Reason
from turnout_workers.routing.failover import RULES
from turnout_workers.simulator.scenario import FaultKind
from turnout_workers.state.fleet_view import COOLS_DOWN, HEALTH_WORDS
from turnout_workers.state.store import Account

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
REQUESTS, FAILURES, OPERATIONS, WEB_APPS, COMMANDS, MONITORING = (
    (ROOT / "docs" / f"{name}.md").read_text("utf-8")
    for name in ("requests", "failures", "operations", "web-apps", "commands", "monitoring")
)
CODE = "".join(
    path.read_text("utf-8")
    for top in ("tasks", "workers")
    for path in sorted((ROOT / top).rglob("*"))
    if path.suffix in (".py", ".lua")
)


def rows(page: str, heading: str) -> set[str]:
    """The names in the first column of the tables below a heading."""
    part = re.split(r"^## ", page, flags=re.MULTILINE)
    [section] = [text for text in part if text.startswith(heading + "\n")]
    return {
        name for cell in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for name in re.findall(r"`(\w+)`", cell)
    }


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if not link.startswith("http"):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_every_field_of_a_request_and_every_constraint_is_documented() -> None:
    assert rows(REQUESTS, "Fields of a request") == set(InferenceRequest.model_fields)
    assert rows(REQUESTS, "Constraints") == {*RoutingConstraints.model_fields, *RoutingStrategy}


def test_every_exit_code_is_documented() -> None:
    sections = re.split(r"^## ", COMMANDS, flags=re.MULTILINE)
    [section] = [text for text in sections if text.startswith("Exit codes\n")]
    codes = [DONE, SOME_FAILED, UNUSABLE, STOPPED, REFUSED]
    assert [*map(int, re.findall(r"^\| (\d) \|", section, re.MULTILINE))] == codes


def test_every_command_is_listed() -> None:
    listed = set(re.findall(r"^\| `turnout (batch [\w-]+|\w+)", COMMANDS, re.MULTILINE))
    batch = main.get_command(click.Context(main), "batch")
    assert isinstance(batch, click.Group)
    names = {*main.list_commands(click.Context(main))} - {"batch"}
    assert listed == names | {f"batch {name}" for name in batch.commands}


def test_the_lines_that_the_page_shows_can_be_read_and_written() -> None:
    asked, answered, failed = (json.loads(block) for block in re.findall(r"```json\n(.*?)```", REQUESTS, re.DOTALL))
    raw = json.dumps(asked).encode()
    line, request = parse(RawLine(1, raw, detect(raw)))
    assert (line.id, type(request)) == ("ticket-4711", InferenceRequest)
    none = json.loads(render(Line(5, "bad"), never_run(Problem(**failed["error"]))))
    assert none == failed
    assert answered.keys() == none.keys()


COMES_BACK = WEB_APPS.partition("\n## What comes back\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize("model", [JobResult, InferenceResponse])
def test_every_field_of_what_comes_back_is_documented(model: type[BaseModel]) -> None:
    table = COMES_BACK.partition(f"`{model.__name__}` | meaning |")[2].partition("\n\n")[0]
    first = "".join(re.findall(r"^\| (`.*?) \|", table, re.MULTILINE))
    assert set(re.findall(r"`(\w+)`", first)) == set(model.model_fields)


@pytest.mark.parametrize(
    ("of", "values"),
    [
        (r"^\| `id`, `status` \|(.*)", {*JobStatus}),
        (r"^\| `finish`.*? \|(.*)", {*FinishReason}),
        (r"^- \*\*`job.status\(\)`:\*\*((?:.|\n  )*)", LIVE),
        (r"^- \*\*A webhook's `type`:\*\*(.*)", {f"job.{status}" for status in JobStatus}),
        (r"^- \*\*`job.events\(\)`:\*\*.*?:((?:.|\n  )*)", {*JobStatus, *re.findall(r'"event": ?"(\w+)"', CODE)}),
    ],
)
def test_every_value_of_what_comes_back_is_documented(of: str, values: set[str]) -> None:
    [documented] = re.findall(of, COMES_BACK, re.MULTILINE)
    assert set(re.findall(r"`([\w.]+)`", re.sub(r"\(.*?\)", "", documented))) == values


def test_every_fault_that_can_be_rehearsed_is_documented() -> None:
    assert rows(FAILURES, "Rehearsing failures") == {"kind", *get_args(FaultKind)}


def test_what_a_failure_leads_to_is_documented_as_the_rules_have_it() -> None:
    documented = dict(re.findall(r"^\| `(\w+)` \|(.*)\|$", FAILURES.partition("## How jobs end")[0], re.MULTILINE))
    assert documented.keys() == {*RULES}
    for kind, rule in RULES.items():
        row = documented[kind]
        assert [mark in row for mark in "¹²³"] == [rule.counts, rule.spends, rule.unsuited], kind
        assert ("disabled" in row) == rule.disables, kind
        assert ("fails when a second" in row) == (rule.max_providers == 2), kind
        assert ("more there" in row) == bool(rule.retries), kind


def test_every_reason_for_an_exclusion_is_documented() -> None:
    assert rows(FAILURES, "Why an endpoint isn't used") == set(Reason)


def test_every_environment_variable_is_documented() -> None:
    read = set(re.findall(r"\b(?:TURNOUT|REDIS)_[A-Z_]+", CODE))
    assert read <= set(re.findall(r"`(\w+)`", OPERATIONS.partition("## Changing the configuration")[0]))


def test_every_metric_is_documented() -> None:
    source = (ROOT / "workers/turnout_workers/monitoring/fleet_metrics.py").read_text("utf-8")
    shared = {name for name, *_ in BY_ENDPOINT} | set(re.findall(r'_gauge\("(\w+)"', source))
    counted = {family.name for family in Metrics().registry.collect()}
    section = MONITORING.partition("## Prometheus")[2].partition("## Logs")[0]
    documented = {name.removesuffix("_total") for name in re.findall(r"`(turnout_\w+)`", section)}
    assert documented == counted | {f"turnout_fleet_{name}" for name in shared}


@pytest.mark.parametrize(
    ("metric", "values"),
    [
        ("turnout_jobs_total", {*JobStatus, *get_args(MovedOn), "skipped"}),
        ("turnout_recoveries_total", set(get_args(Recovery))),
        ("turnout_fleet_money_usd", {column.name for column in fields(Account)}),
    ],
)
def test_the_values_of_a_metrics_labels_are_documented(metric: str, values: set[str]) -> None:
    [documented] = re.findall(rf"^\| `{metric}` \|.*?\|(.*)", MONITORING, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", documented)) == values


def test_the_words_for_an_endpoints_health_are_documented() -> None:
    section = MONITORING.partition("## Terminal")[2].partition("## Flower")[0]
    documented = dict(re.findall(r"^\| ([\w ]+) \| (?:`(\w+)`)? ?\|", section, re.MULTILINE))
    assert (documented.pop("health"), documented.pop(COOLS_DOWN)) == ("state", "")
    assert documented == {word: circuit for circuit, word in HEALTH_WORDS.items()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_option_that_is_shown_exists(page: Path) -> None:
    """In blocks and within sentences; of `turnout a | b` each."""
    for shown in re.findall(r"^turnout [^\n]*|(?<=`)turnout [^`\n]*", page.read_text("utf-8"), re.MULTILINE):
        first, *others = shown.partition("  #")[0].removeprefix("turnout ").split(" | ")
        group = "batch " if first.startswith("batch ") else ""
        for words in map(str.split, (first, *(group + name for name in others))):
            command: click.Command | None = main
            while isinstance(command, click.Group) and words and not words[0].startswith("-"):
                command = command.get_command(click.Context(command), words.pop(0))
            assert command is not None, shown
            options = {name for param in command.params for name in param.opts} | {"-", "--help"}
            assert {word for word in words if word.startswith("-")} <= options, shown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_shown_code_imports_from_turnout_is_there(page: Path) -> None:
    for code in re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.startswith("turnout"):
                module = import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name) or import_module(f"{node.module}.{alias.name}"), alias.name


@pytest.mark.parametrize("page", ["README.md", "docs/web-apps.md"])
def test_the_job_that_is_shown_can_be_served_by_vendors_with_only_a_key(page: str) -> None:
    def submit(prompt: str, **options: object) -> InferenceRequest:
        return InferenceRequest(
            prompt=prompt, **{k: v for k, v in options.items() if k in InferenceRequest.model_fields}
        )

    [shown] = re.findall(
        r"^job = client\.(submit\(\n.*?^\))", (ROOT / page).read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    request = eval(shown, {"submit": submit, "RoutingConstraints": RoutingConstraints})
    fleet = config.fleet(config.configured({"GROQ_API_KEY": "a", "OPENAI_API_KEY": "b"}))
    found = forecast([(Line(1, "shown"), request)], fleet)
    assert found.problems == []
    assert {*found.shares} <= {"groq/gpt-oss-120b", "openai/gpt-5.4-mini"}
