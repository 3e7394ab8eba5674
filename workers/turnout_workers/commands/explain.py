"""`turnout explain`: why did this job go there? Its whole story, with every decision."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from turnout.ledger.content import CONTENT
from turnout.request import RoutingStrategy
from turnout.result import JobResult, dollars
from turnout_workers.commands.file_options import STRATEGY
from turnout_workers.commands.screen import add_row, indented, print_json, show, standard_output, table
from turnout_workers.deployment import deployment
from turnout_workers.routing import decision_log

COLUMNS = ("\ncandidate", "\nscore", "\ncost", "\nlatency", "\nlate", "\nwait", "\nerrors", "calls\nahead")
"""A decision's candidates, with the values expected then; a lower score is better. `calls ahead` are in flight, or were
requested by the same worker a moment before, so there may be more than there are slots. `--json` has more."""
EXCLUDED = ("reason", "text", "endpoints", "more")
"""Names of an exclusion's parts in JSON."""


@click.command()
@click.argument("job")
@click.option("--json", "as_json", is_flag=True, help="Print the story as JSON.")
@click.option("--what-if", "strategy", type=STRATEGY, help="Show what another strategy would have chosen.")
def explain(job: str, as_json: bool, strategy: str | None) -> None:
    """Explain why a job went where it did. Shows every decision with its candidates, attempt, wait and cost."""
    here = deployment()
    facts, story, result = here.ask(
        here.ledger.facts(job), here.ledger.story(job), here.ledger.result(job, content=False)
    )
    if facts is None:
        raise click.ClickException(f"there is no job {job}: it never existed, or its record has expired")
    decisions = [event["decision"] for event in story if "decision" in event]
    what_if = list(decision_log.choices(decisions, RoutingStrategy(strategy))) if strategy else []
    if as_json:
        story_json = {"job": job, **facts.model_dump(mode="json", include={"state", "lane", "label", "batch"})}
        story_json["story"] = [*map(_named, story)]
        story_json["result"] = result.model_dump(mode="json", exclude={"response": CONTENT}) if result else None
        if strategy:
            story_json["what_if"] = [choice._asdict() for choice in what_if]
        print_json(story_json)
        return
    console = standard_output()
    console.print(Text.assemble((job, "bold"), f"  {facts.lane} · {facts.label} · {facts.state}"))
    for day, events in itertools.groupby(story, lambda event: f"{_time(event):%Y-%m-%d}"):
        console.print(f"{day} UTC")
        for event in events:
            _print_event(console, event, story[0]["at"])
    if result is not None:
        _attempts(console, result)
    if strategy:
        _what_if(console, strategy, what_if)


def _named(event: dict[str, Any]) -> dict[str, Any]:
    """An event for programs: with names for what is stored as bare lists, and the time in seconds."""
    named = {**event, "at": event["at"] / 1000}
    if (decision := event.get("decision")) is not None:
        candidates = [row._asdict() for row in decision_log.candidates(decision)]
        excluded = [dict(zip(EXCLUDED, one, strict=True)) for one in decision_log.excluded(decision)]
        named["decision"] = {**decision, "candidates": candidates, "excluded": excluded}
    return named


def _time(event: dict[str, Any]) -> datetime:
    return datetime.fromtimestamp(event["at"] / 1000, UTC)


def _print_event(console: Console, event: dict[str, Any], began: int) -> None:
    rest = {k: v for k, v in event.items() if k not in ("at", "event", "decision")}
    words = ", ".join(f"{name} {value}" for name, value in rest.items())
    passed_s = (event["at"] - began) / 1000
    when = f"{_time(event):%H:%M:%S}  +{passed_s:.3f} s  "
    console.print(Text.assemble(when, (event["event"], "bold"), f"  {words}"))
    if (decision := event.get("decision")) is not None:
        _decision(console, decision)


def _decision(console: Console, decision: dict[str, Any]) -> None:
    rows = decision_log.candidates(decision)
    called = decision.get("called")
    console.print(f"    by {decision['strategy']}: {_choice(decision, [row.id for row in rows], called)}")
    if rows:
        candidates = table(*COLUMNS, numbers=COLUMNS[1:], whole=COLUMNS[:1])
        for row in rows:
            cost = "?" if row.cost_microusd is None else dollars(math.ceil(row.cost_microusd))
            numbers = [f"{row.score:.4g}" if row.score is not None else "", cost, f"{row.latency_s:.2f} s"]
            numbers += [f"{row.p_late:.0%}", f"{row.wait_s:.1f} s" if row.wait_s else ""]
            numbers += [f"{row.error_rate:.0%}", str(row.in_flight)]
            add_row(candidates, row.id, *numbers, style="bold" if row.id == called else "")
        candidates.padding, candidates.show_edge = 0, False
        show(console, candidates, columns=4)
    for reason, text, ids, more in decision_log.excluded(decision):
        others = f" and {more:,} more" if more else ""
        console.print(indented(f"not {', '.join(ids)}{others}: {text} ({reason})", 4, "dim"))


def _choice(decision: dict[str, Any], ranked: Sequence[str], called: str | None) -> str:
    """What was done, as text."""
    if called is not None:
        rank = ranked.index(called) + 1 if called in ranked else 1
        why = "" if rank == 1 else f", ranked {rank} of {len(ranked)}: the better ones had no room, or it was a retry"
        return f"called {called}{why}"
    if decision["waits_for"]:
        return f"waits for {decision['waits_for']}, {decision['wait_s']:.1f} s"
    if decision["action"] == "go":
        full = (f"{endpoint} ({reason})" for endpoint, reason in decision.get("no_room", {}).items())
        return f"no room: {', '.join(full) or 'the best of them'}"
    return "nothing can serve it" if decision["action"] == "refuse" else f"waits {decision['wait_s']:.1f} s"


def _attempts(console: Console, result: JobResult) -> None:
    for number, attempt in enumerate(result.attempts, 1):
        ended = attempt.failure or "answered"
        money = dollars(attempt.cost_microusd)
        if attempt.unsure_microusd:
            money += f", perhaps {dollars(attempt.unsure_microusd)} more"
        message = f"  {attempt.message}" if attempt.message else ""
        line = f"{number}. {attempt.endpoint}: {ended} after {attempt.duration_s:.2f} s, {money}{message}"
        console.print(indented(line, 2))
    console.print(result.summary(), style="bold")


def _what_if(console: Console, strategy: str, choices: Sequence[decision_log.Choice]) -> None:
    if not choices:
        console.print(f"No decision is recorded for this job, so there is nothing to compare with {strategy}.")
    for number, choice in enumerate(choices, 1):
        cost = "an unknown price" if choice.cost_microusd == math.inf else dollars(math.ceil(choice.cost_microusd))
        other = "as before" if choice.endpoint_id == choice.logged else f"not {choice.logged}"
        expected = f"{cost} and {choice.time_s:.1f} s expected"
        console.print(f"By {strategy}, decision {number}: {choice.endpoint_id} first ({other}), {expected}")
