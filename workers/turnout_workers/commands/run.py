"""`turnout run`: every line of a file, on one machine, with whatever is there."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry
from rich.console import Console

from turnout.batch import progress
from turnout.batch.feeder import Feeder, Options, Stopped, read
from turnout.batch.lines import Defaults
from turnout.batch.sink import Sink
from turnout.batch.source import Source
from turnout.errors import TurnoutError
from turnout.ledger import Keyring, Keys, Ledger
from turnout.redis_address import connect
from turnout.request import MICROUSD_PER_USD, InferenceRequest, Lane, RoutingStrategy
from turnout.result import JobStatus
from turnout_workers import local, process
from turnout_workers.commands.duration import Duration
from turnout_workers.dry_run import forecast, shown
from turnout_workers.endpoints import accounts
from turnout_workers.routing.eligibility import refusal
from turnout_workers.routing.fleet import Fleet
from turnout_workers.routing.profile import JobProfile
from turnout_workers.state.fleet_view import FleetView

Command = TypeVar("Command", bound=Callable[..., Any])
DONE, SOME_FAILED, STOPPED, UNUSABLE = 0, 1, 3, 2
"""Exit codes."""
PATIENCE = Retry(ExponentialWithJitterBackoff(base=0.05, cap=1.0), retries=120)
"""A Redis that restarts is waited for, a minute or so: each step of the feeder can be asked again."""


BATCH_OPTIONS = (
    click.option("--model", help="For lines that name none."),
    click.option("--strategy", type=click.Choice([one.value for one in RoutingStrategy]), help="As --model."),
    click.option("--lane", type=click.Choice([one.value for one in Lane]), default="batch", show_default=True),
    click.option("--only", multiple=True, help="Provider to use. Repeatable."),
    click.option("--max-cost", type=click.FloatRange(min=0), help="USD for the whole file; the rest then expires."),
    click.option(
        "--deadline",
        "--completion-window",
        "deadline",
        type=Duration(),
        help="For each line, from when it is queued: 90s, 30m, 24h.",
    ),
)


def batch_options(command: Command) -> Command:
    """What holds for all lines of a file."""
    for option in reversed(BATCH_OPTIONS):
        command = option(command)
    return command


@click.command()
@click.argument("source")
@click.option("-o", "--output", required=True, help="Results, a line for each line of SOURCE; - for standard output.")
@click.option("--errors", help="A file of its own for lines without an answer.")
@click.option("--config", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="turnout.toml")
@click.option("--simulate", is_flag=True, help="Use the simulated fleet, whatever keys there are. No model is run.")
@click.option("--scenario", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Of the simulation.")
@batch_options
@click.option("--dedupe", is_flag=True, help="Ask identical requests once.")
@click.option("--as-completed", is_flag=True, help="Write results in the order in which they came.")
@click.option(
    "-w", "--workers", type=click.IntRange(0), default=1, show_default=True, help="Processes; 0: those there."
)
@click.option("-c", "--concurrency", type=click.IntRange(1, 10_000), help="Jobs in flight in each.")
@click.option("--dry-run", is_flag=True, help="Check every line and estimate tokens, cost and time; run nothing.")
@click.option("--json", "as_json", is_flag=True, help="Progress and summary for machines, on standard error.")
def run(source: str, output: str, **options: Any) -> None:
    """Run every line of SOURCE and write its result. Interrupted, the same command goes on where it stopped."""
    console = Console(stderr=True)
    try:
        sys.exit(_run(source, output, console, options))
    except (TurnoutError, process.StartFailed) as error:
        raise SystemExit(_complain(console, str(error))) from None
    except redis.ConnectionError as error:
        message = f"Redis is away: {error}. What is done is kept; once it is back, the same command goes on."
        raise SystemExit(_complain(console, message)) from None


def _complain(console: Console, message: str) -> int:
    console.print(f"turnout: {message}", style="red", highlight=False, markup=False)
    return UNUSABLE


def _run(source: str, output: str, console: Console, options: dict[str, Any]) -> int:
    name = hashlib.sha256(f"{Path(source).resolve()}\0{Path(output).resolve()}".encode()).hexdigest()[:16]
    folder = Path(".turnout") / name
    stop = _stop_on_signals(console)
    simulate = ("--scenario", str(options["scenario"])) if options["scenario"] else ()
    wanted = simulate if options["simulate"] or options["scenario"] else None
    started_at = time.monotonic()
    total = _count(source)
    if options["dry_run"]:
        return _dry_run(source, console, options, wanted)
    console.print("Starting …", style="dim")
    with (
        Sink(output, options["errors"], in_order=not options["as_completed"]) as sink,
        local.running(folder, options["config"], options["workers"], options["concurrency"], wanted) as here,
    ):
        fleet = Fleet(endpoint for account in accounts(here.settings) for endpoint in account.endpoints)
        _announce(console, here, fleet)
        client = connect(here.redis_url, retry=PATIENCE)
        ledger = Ledger(Keys(here.settings.file.namespace), keyring=Keyring.of(os.environ))
        ceiling = None if options["max_cost"] is None else round(options["max_cost"] * MICROUSD_PER_USD)
        feeding = Options(
            batch=name,
            defaults=defaults(options),
            dedupe=options["dedupe"],
            max_cost_microusd=ceiling,
            refusal=lambda request: _refusal(request, fleet),
        )
        feeder = Feeder(client, ledger, Source(source), sink, feeding)
        view = FleetView(client, ledger.keys, fleet)
        with _display(console, total, ceiling, options["as_json"], Path(source).name) as shown:
            try:
                tally = feeder.run(lambda now: shown.update(now, view.troubles()), lambda: stop.is_set() or _dead(here))
            except Stopped:
                _dead(here, tell=True)
                command = " ".join(sys.argv[1:])
                message = f"Stopped. What is done is kept; to go on: turnout {command}"
                console.print(message, style="yellow", markup=False)
                return STOPPED
        sink.finish()
    if options["as_json"]:
        console.out(json.dumps(progress.summary(tally)), highlight=False)
    else:
        console.print(progress.table(tally))
        console.print(progress.closing_line(tally, time.monotonic() - started_at), highlight=False)
        if output != "-":
            console.print(f"Results are in {output}", highlight=False, markup=False)
    return DONE if tally.finished == tally.done[JobStatus.SUCCEEDED.value] else SOME_FAILED


def _dry_run(source: str, console: Console, options: dict[str, Any], simulate: tuple[str, ...] | None) -> int:
    settings = local.configuration(options["config"], simulate)
    fleet = Fleet(endpoint for account in accounts(settings) for endpoint in account.endpoints)
    told = forecast(read(Source(source), defaults(options)), fleet)
    slots = (options["concurrency"] or settings.file.worker.concurrency) * options["workers"]
    console.print(shown(told, fleet, slots))
    return SOME_FAILED if told.bad else DONE


def defaults(options: Mapping[str, Any]) -> Defaults:
    """Of the options that hold for all lines."""
    constraints = {
        "strategy": options["strategy"],
        "lane": options["lane"],
        "only": list(options["only"]) or None,
        "deadline_s": options["deadline"],
    }
    request = {"model": options["model"]}
    given = [{k: v for k, v in fields.items() if v is not None} for fields in (request, constraints)]
    return Defaults(given[0], given[1])


def _refusal(request: InferenceRequest, fleet: Fleet) -> str | None:
    reasons = refusal(JobProfile.of(request), fleet)
    if reasons is None:
        return None
    return "no endpoint can serve it: " + "; ".join(f"{name}: {why}" for name, why in reasons.items())


def _display(console: Console, total: int | None, ceiling: int | None, as_json: bool, title: str) -> progress.Progress:
    if as_json:
        return progress.Json(console)
    return progress.Bar(console, total, ceiling, title) if console.is_terminal else progress.Lines(console, total)


def _announce(console: Console, here: local.Local, fleet: Fleet) -> None:
    names = list(dict.fromkeys(endpoint.provider for endpoint in fleet.endpoints))
    if here.settings.simulated:
        console.print(
            "No provider is configured, or simulation was asked for: these providers are SIMULATED. Their answers "
            "are made up and no model is run. Set an API key (OPENAI_API_KEY, GROQ_API_KEY, ANTHROPIC_API_KEY, "
            "GEMINI_API_KEY, …) or write a turnout.toml to run on real ones.",
            style="yellow",
        )
    console.print(f"Providers: {', '.join(names)}", highlight=False, markup=False)


def _count(source: str) -> int | None:
    """Lines of a plain file, for the bar; None where counting would mean reading it all twice the hard way."""
    path = Path(source)
    if source == "-" or path.suffix not in {".jsonl", ".ndjson", ".txt"} or not path.is_file():
        return None
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def _dead(here: local.Local, tell: bool = False) -> bool:
    if (child := here.died) is None:
        return False
    if tell:
        raise process.StartFailed(f"a worker ended by itself with code {child.returncode}; see its log in .turnout")
    return True


def _stop_on_signals(console: Console) -> threading.Event:
    """The first Ctrl-C stops in order; the second one at once."""
    stop = threading.Event()

    def handle(_signal: int, _frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        console.print("Stopping: results so far are being saved …", style="yellow")

    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGTERM, handle)
    return stop
