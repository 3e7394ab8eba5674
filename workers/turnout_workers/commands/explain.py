"""`turnout explain`: why did this job go there? Its whole story, with every decision."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from turnout.request import RoutingStrategy
from turnout.result import JobResult, dollars
from turnout_workers.commands.setting import setting
from turnout_workers.routing import record as records

COLUMNS = ("id", "score", "cost", "latency_s", "p_late", "wait_s", "error_rate", "in_flight")
"""Of a decision's candidates; `--json` has them all. Costs are expected micro-dollars, lower scores are better."""


@click.command()
@click.argument("job")
@click.option("--json", "as_json", is_flag=True, help="The story as JSON.")
@click.option("--replay", "strategy", type=click.Choice([one.value for one in RoutingStrategy]), help="What if?")
def explain(job: str, as_json: bool, strategy: str | None) -> None:
    """Tell a job's story: waits, decisions with candidates, exclusions and scores, attempts, money, end."""
    here = setting()
    facts, story, result = here.ask(
        here.ledger.facts(job), here.ledger.story(job), here.ledger.result(job, content=False)
    )
    if facts is None:
        raise click.ClickException(f"there is no job {job}: it never was, or its record has expired")
    if as_json:
        ended = result.model_dump(mode="json", exclude_defaults=True) if result else None
        click.echo(json.dumps({"job": job, "state": facts.state, "story": story, "result": ended}))
        return
    console = Console()
    console.print(f"[bold]{job}[/]  {facts.lane} · {facts.label} · {facts.state}", highlight=False)
    began = story[0]["at"] if story else 0
    for event in story:
        _tell(console, event, began)
    if result is not None:
        _attempts(console, result)
    decisions = [event["decision"] for event in story if "decision" in event]
    if strategy is not None and decisions:
        told = records.replay(decisions, strategy=RoutingStrategy(strategy))
        console.print(f"With the strategy {strategy}: {told}", highlight=False)


def _tell(console: Console, event: dict[str, Any], began: int) -> None:
    at = datetime.fromtimestamp(event["at"] / 1000, UTC)
    rest = {k: v for k, v in event.items() if k not in ("at", "event", "decision")}
    words = ", ".join(f"{name} {value}" for name, value in rest.items())
    console.print(
        f"{at:%H:%M:%S.%f}"[:-3] + f"  +{(event['at'] - began) / 1000:.3f} s  [bold]{event['event']}[/]  {words}",
        highlight=False,
    )
    if (decision := event.get("decision")) is not None:
        _decision(console, decision)


def _decision(console: Console, decision: dict[str, Any]) -> None:
    rows = records.candidates(decision)
    if rows:
        table = Table(
            *COLUMNS, title=f"{decision.get('strategy', '')}: {decision.get('action', '')}", title_justify="left"
        )
        for row in rows:
            table.add_row(*(_short(row[column]) for column in COLUMNS))
        console.print(table)
    for endpoint, (reason, text) in decision["excluded"].items():
        console.print(f"    not {endpoint}: {text} ({reason})", style="dim", highlight=False)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _attempts(console: Console, result: JobResult) -> None:
    for number, attempt in enumerate(result.attempts, 1):
        ended = attempt.failure or "answered"
        money = dollars(attempt.cost_microusd)
        if attempt.unsure_microusd:
            money += f", perhaps {dollars(attempt.unsure_microusd)} more"
        said = f"  {attempt.message}" if attempt.message else ""
        console.print(
            f"  {number}. {attempt.endpoint}: {ended} after {attempt.duration_s:.2f} s, {money}{said}", highlight=False
        )
    console.print(f"[bold]{result.summary()}[/]", highlight=False)
