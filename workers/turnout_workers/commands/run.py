"""`turnout run`: every line of a file, on one machine, with whatever is there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click
import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import NoPermissionError
from redis.retry import Retry
from rich.console import Console

from turnout.batch import progress
from turnout.batch.feeder import Feeder, Options, Stopped
from turnout.batch.journal import Journal
from turnout.batch.line import Defaults
from turnout.batch.output import write_output
from turnout.batch.source import Source, read
from turnout.errors import TurnoutError
from turnout.ledger import Keyring, Keys, Ledger
from turnout.redis_address import connect
from turnout.request import MICROUSD_PER_USD, InferenceRequest, Lane, RoutingStrategy
from turnout.result import JobStatus
from turnout_workers import endpoints, local, process
from turnout_workers.commands.duration import Duration
from turnout_workers.dry_run import forecast, shown, summary
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
    click.option("--dedupe", is_flag=True, help="Ask identical requests once."),
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
@click.option("-o", "--output", help="Results, a line for each line of SOURCE; - for standard output.")
@click.option("--errors", help="A file of its own for lines without an answer.")
@click.option("--config", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="turnout.toml")
@click.option("--simulate", is_flag=True, help="Use the simulated fleet, whatever keys there are. No model is run.")
@click.option("--scenario", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Of the simulation.")
@batch_options
@click.option("--retry-failed", is_flag=True, help="Run lines again that found no answer in an earlier run.")
@click.option("--as-completed", is_flag=True, help="Write results in the order in which they came.")
@click.option(
    "-w", "--workers", type=click.IntRange(0), default=1, show_default=True, help="Processes; 0: those there."
)
@click.option("-c", "--concurrency", type=click.IntRange(1, 10_000), help="Jobs in flight in each.")
@click.option("--dry-run", is_flag=True, help="Check every line and estimate tokens, cost and time; run nothing.")
@click.option("--json", "as_json", is_flag=True, help="Progress and summary for machines, on standard error.")
def run(source: str, output: str | None, **options: Any) -> None:
    """Run every line of SOURCE (JSONL, text, CSV or Parquet; - for standard input) and write its result.

    Interrupted, the same command goes on where it stopped. Exit code: 0 all lines have an answer, 1 some have none,
    2 it could not run, 3 stopped.
    """
    console = Console(stderr=True)
    try:
        if options["dry_run"]:
            sys.exit(_dry_run(source, options))
        if output is None:
            raise click.UsageError("say with -o where results are to go (- for standard output)")
        sys.exit(_run(source, output, console, options, _stop_on_signals(console)))
    except (Stopped, KeyboardInterrupt):
        message = f"Stopped. What is done is kept; to go on: turnout {shlex.join(sys.argv[1:])}"
        console.print(message, style="yellow", markup=False, soft_wrap=True)
        sys.exit(STOPPED)
    except (TurnoutError, process.StartFailed) as error:
        sys.exit(_complain(console, str(error)))
    except NoPermissionError as error:
        sys.exit(_complain(console, f"REDIS_URL's user may not do that: {error}"))
    except (redis.ConnectionError, redis.TimeoutError) as error:
        message = f"Redis is away: {error}. What is done is kept; once it is back, the same command goes on."
        sys.exit(_complain(console, message))


def _complain(console: Console, message: str) -> int:
    console.print(f"turnout: {message}", style="red", highlight=False, markup=False, soft_wrap=True)
    return UNUSABLE


def _run(source: str, output: str, console: Console, options: dict[str, Any], stop: threading.Event) -> int:
    name = hashlib.sha256(f"{Path(source).resolve()}\0{Path(output).resolve()}".encode()).hexdigest()[:16]
    folder, began_at = Path(".turnout") / name, time.monotonic()
    Source(source).check()
    partial_output = folder / "stdout.partial" if output == "-" else Path(f"{output}.partial")
    tell = partial(console.print, style="yellow", highlight=False, markup=False)
    with contextlib.ExitStack() as stack:
        journal = stack.enter_context(Journal(partial_output))
        total = _count(source)
        with console.status("Starting …"):
            parts = local.running(
                folder, options["config"], options["workers"], options["concurrency"], _simulation(options), tell
            )
            here = stack.enter_context(parts)
        fleet = endpoints.fleet(here.settings)
        providers = _announce(console, here, fleet)
        client = connect(here.redis_url, retry=PATIENCE)
        ledger = Ledger(Keys(here.settings.file.namespace), keyring=Keyring.of(os.environ))
        feeding = Options(
            defaults=defaults(options),
            dedupe=options["dedupe"],
            max_cost_microusd=_microusd(options["max_cost"]),
            retry_failed=options["retry_failed"],
            refusal=lambda request: _refusal(request, fleet),
        )
        feeder = Feeder(client, ledger, Source(source), journal, feeding, lambda: stop.is_set() or here.given_up)
        view = FleetView(client, ledger.keys, fleet)
        shown = _display(console, total, feeding.max_cost_microusd, options["as_json"], Path(source).name, providers)
        try:
            with shown:
                tally = feeder.run(lambda now: shown.update(now, view.troubles()))
        except Stopped:
            if here.given_up:
                raise process.StartFailed(f"{here.given_up} keeps ending by itself; see its log in {folder}") from None
            raise
        complete = tally.done[JobStatus.SUCCEEDED] == tally.finished
        write_output(journal, output, options["errors"], in_order=not options["as_completed"])
        if complete:
            journal.path.unlink()
    if complete:
        shutil.rmtree(folder / "redis", ignore_errors=True)
    if options["as_json"]:
        console.out(json.dumps(progress.summary(tally)), highlight=False)
        return DONE if complete else SOME_FAILED
    console.print(progress.table(tally))
    console.print(progress.closing_line(tally, time.monotonic() - began_at), highlight=False)
    if output != "-":
        errors = f", those without an answer in {options['errors']}" if options["errors"] else ""
        console.print(f"Results are in {output}{errors}", highlight=False, markup=False, soft_wrap=True)
    if not complete:
        tell(f"{tally.failed:,} lines have no answer; --retry-failed runs them again, and no others", soft_wrap=True)
    return DONE if complete else SOME_FAILED


def _simulation(options: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Options of `turnout simulate`, if simulated providers are wanted."""
    if options["scenario"]:
        return ("--scenario", str(options["scenario"]))
    return () if options["simulate"] else None


def _microusd(usd: float | None) -> int | None:
    return None if usd is None else round(usd * MICROUSD_PER_USD)


def _dry_run(source: str, options: dict[str, Any]) -> int:
    settings = local.configuration(options["config"], _simulation(options))
    fleet = endpoints.fleet(settings)
    told = forecast(read(Source(source), defaults(options)), fleet)
    slots = (options["concurrency"] or settings.file.worker.concurrency) * max(1, options["workers"])
    if options["as_json"]:
        click.echo(json.dumps(summary(told, fleet, slots)))
    else:
        Console().print(shown(told, fleet, slots))
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


def _display(
    console: Console, total: int | None, ceiling: int | None, as_json: bool, title: str, providers: Sequence[str]
) -> progress.Progress:
    if as_json:
        return progress.Json(console)
    if console.is_terminal:
        return progress.Bar(console, total, ceiling, title, providers)
    return progress.Lines(console, total, ceiling)


def _announce(console: Console, here: local.Local, fleet: Fleet) -> list[str]:
    """Say which providers there are; gives their names."""
    names = list(dict.fromkeys(endpoint.provider for endpoint in fleet.endpoints))
    if here.settings.simulated:
        console.print(
            "These providers are SIMULATED: their answers are made up, and no model is run. To run on real ones, set "
            "an API key (OPENAI_API_KEY, GROQ_API_KEY, ANTHROPIC_API_KEY, GEMINI_API_KEY, …) or write a turnout.toml.",
            style="yellow",
        )
    console.print(f"Providers: {', '.join(names)}", highlight=False, markup=False)
    return names


def _count(source: str) -> int | None:
    """Lines of a plain file, for the bar; None where counting would mean reading it all twice the hard way."""
    path = Path(source)
    if source == "-" or path.suffix not in {".jsonl", ".ndjson", ".txt"} or not path.is_file():
        return None
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def _stop_on_signals(console: Console) -> threading.Event:
    """The first Ctrl-C stops in order, the second one at once; either may go on later."""
    stop = threading.Event()

    def handle(_signal: int, _frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        console.print("Stopping: results so far are being saved …", style="yellow")

    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGTERM, handle)
    return stop
