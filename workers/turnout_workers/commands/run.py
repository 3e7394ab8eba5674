"""`turnout run`: every line of a file, on one machine, with the providers that are available."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import click
import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

from turnout import redis_address, redis_trouble
from turnout.batch.feeder import Feeder, Stopped
from turnout.batch.jobs import cancel_live
from turnout.batch.journal import Journal, writing
from turnout.batch.output import check_places, write_output
from turnout.batch.reading import Reading, nothing_to_run
from turnout.batch.render import reason
from turnout.batch.source import Source, SourceError
from turnout.batch.tally import Tally
from turnout.cli import STOPPED, UNUSABLE
from turnout.errors import TurnoutError
from turnout_workers import local
from turnout_workers.commands import file_options, run_display
from turnout_workers.commands.dead_end import DeadEnd, DeadEndWatch
from turnout_workers.commands.dry_run import dry_run
from turnout_workers.commands.screen import counted, show, standard_error, to_json_line
from turnout_workers.config import Settings, endpoints
from turnout_workers.simulator.scenario import DEFAULT
from turnout_workers.state.fleet_view import FleetView

FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
MAX_TRIES = 120
"""Tries to reach Redis, which take about a minute: enough for a restart. Each step of the feeder can be repeated."""
SIMULATED = (
    "SIMULATED: {}. Their answers are made up, and no model is run for them. To run on real providers, set an API "
    "key (OPENAI_API_KEY, GROQ_API_KEY, ANTHROPIC_API_KEY, GEMINI_API_KEY, …) or write a turnout.toml."
)


class _UnlessStopped(ExponentialWithJitterBackoff):
    """Waits between two tries, unless the run should stop."""

    def __init__(self, stopping: Callable[[], object]) -> None:
        super().__init__(base=0.05, cap=1.0)
        self._stopping = stopping

    def compute(self, failures: int) -> float:
        if self._stopping():
            raise Stopped("interrupted while Redis was away")
        return super().compute(failures)


@click.command()
@click.argument("source")
@click.option("-o", "--output", help="File for the results, one line for each line of SOURCE; - for standard output.")
@click.option("--errors", help="File for the lines without an answer; by default they are among the results.")
@click.option("--config", type=FILE, help="The turnout.toml to use.")
@click.option("--simulate", is_flag=True, help="Use the simulated fleet, even if there are API keys. No model is run.")
@click.option("--scenario", type=FILE, help="TOML file of the simulated fleet.")
@file_options.line_options
@click.option("--retry-failed", is_flag=True, help="Replay the lines without an answer, and only those.")
@click.option("--anew", is_flag=True, help="Run every line again, even those that have an answer.")
@click.option(
    "--as-completed", is_flag=True, help="Write each result as soon as it is there, not in the order of SOURCE."
)
@click.option(
    "-w",
    "--workers",
    type=click.IntRange(0),
    default=1,
    help="Worker processes to start; 0 leaves the work to workers that are already running.",
)
@click.option("-c", "--concurrency", type=click.IntRange(1, 10_000), help="Jobs in flight in each worker.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Check every line and estimate tokens, cost and duration; send nothing. Identical and already answered lines "
    "are counted too.",
)
@click.option("--json", "as_json", is_flag=True, help="Write progress and summary as JSON, on standard error.")
def run(source: str, output: str | None, **options: Any) -> None:
    """Run every line of SOURCE and write the results.

    SOURCE is JSONL, text, CSV or Parquet; - reads JSONL from standard input. Running the same command again resumes
    where it stopped, runs lines that were edited since, and never pays twice for a line. To run all lines again use
    --anew.

    \b
    Exit codes:
      0  every line has an answer
      1  some lines have none
      2  it could not run
      3  it was stopped; the same command resumes it
      4  every provider that could serve the rest refuses our key
    """
    if options["simulate"] and options["scenario"] is None:
        options["scenario"] = DEFAULT
    this, code = _Run(Source(source, options["max_line_bytes"]), output or "", options), UNUSABLE
    same = f"turnout {shlex.join(word for word in sys.argv[1:] if word != '--anew')}"  # which would pay for all again
    try:
        if options["dry_run"]:
            sys.exit(dry_run(this.source, options))
        if output is None:
            raise click.UsageError("say with -o where results are to go (- for standard output)")
        this.stop_on_signals()
        sys.exit(this.run())
    except (Stopped, KeyboardInterrupt):
        this.say(f"Stopped. What is done is kept; to go on: {same}")
        sys.exit(STOPPED)
    except DeadEnd as error:
        problem, code = f"{error}\nWhat is done is kept. Fix that, then: {same}", file_options.REFUSED
    except TurnoutError as error:
        problem = str(error)
    except (redis.RedisError, OSError) as error:  # OSError: for example a full disk
        text = str(error) if isinstance(error, OSError) else redis_trouble.explain(error).rstrip(".")
        problem = f"{text}. What is done is kept: fix that, and the same command goes on."
    this.say(f"turnout: {problem}", "red")
    sys.exit(code)


class _Run:
    """One run of a file: its options, and where it reports."""

    def __init__(self, source: Source, output: str, options: dict[str, Any]) -> None:
        self.source, self.output, self.options = source, output, options
        self.console, self.stop = standard_error(), Event()

    def say(self, text: str, style: str = "yellow") -> None:
        """Print a message on standard error; as JSON if progress and summary are."""
        if self.options["as_json"]:
            self.console.out(to_json_line({"message": text}))
        else:
            self.console.print(text, style=style, soft_wrap=True)

    def stop_on_signals(self) -> None:
        """The first Ctrl-C stops in order, the second one at once. Both kinds of run can be resumed."""

        def handle(_signal: int, _frame: object) -> None:
            if self.stop.is_set():
                raise KeyboardInterrupt
            self.stop.set()
            self.say("Stopping: saving results …")

        signal.signal(signal.SIGINT, handle)
        signal.signal(signal.SIGTERM, handle)

    def run(self) -> int:
        """Returns the exit code."""
        began_at, output, options = time.monotonic(), self.output, self.options
        self.source.check()
        check_places(output, options["errors"], self.source.path)
        fixed = file_options.fixed_options(options)
        paths = b"\0".join(os.fsencode(Path(path).resolve()) for path in (self.source.path, output))
        folder = Path(".turnout") / hashlib.sha256(paths).hexdigest()[:16]
        with writing(folder, "; a run keeps its Redis and its logs there: start it in a writable folder"):
            folder.mkdir(parents=True, exist_ok=True)
        journal_path = folder / "stdout.journal" if output == "-" else Path(f"{output}.journal")
        with contextlib.ExitStack() as stack:
            journal = stack.enter_context(Journal(journal_path))
            if options["anew"]:  # `_prepare` begins the journal, because that needs Redis
                shutil.rmtree(folder / "redis", ignore_errors=True)
            else:
                journal.begin(fixed, options["retry_failed"])
            tally, broken = journal.tally, None
            try:
                if nothing_to_run(self.source, journal):
                    tally.lines = tally.finished
                    journal.end()
                else:
                    with self.console.status("Starting …"):
                        here = stack.enter_context(local.running(folder, options["config"], options["scenario"]))
                        self._prepare(journal, here)
                        stack.enter_context(here.workers(options["workers"], options["concurrency"]))
                    self._feed(journal, here)
            except SourceError as error:
                broken = f"{error}. The lines before that are done; their results are in {output}"
            complete = not tally.failed and not broken
            advice = f"; all results are in {journal.path}: the same command goes on"
            write_output(journal.output(in_order=not options["as_completed"]), output, options["errors"], advice)
            unanswered = (line for answered, line in journal.output() if not answered)
            first = next(unanswered) if tally.failed else None
            if complete and output == "-":
                journal.path.unlink()
        if complete:
            shutil.rmtree(folder / "redis", ignore_errors=True)
        self._sum_up(tally, time.monotonic() - began_at, first)
        if broken:
            raise TurnoutError(broken)
        return file_options.DONE if complete else file_options.SOME_FAILED

    def _prepare(self, journal: Journal, here: local.Local) -> None:
        """Runs before our workers start: Redis may still hold jobs of the last run, for which they would make calls."""
        if not (self.options["workers"] or here.shared):
            no_redis = "--workers 0 leaves the work to running workers: set REDIS_URL or redis_url to their Redis"
            raise click.UsageError(f"{no_redis} (a simulated fleet has its own)")
        if self.options["anew"]:
            if journal.batch:
                with redis_address.connect(here.redis_url) as client:
                    cancel_live(client, here.ledger, journal.batch)
            journal.forget()
            journal.begin(file_options.fixed_options(self.options), self.options["retry_failed"])

    def _feed(self, journal: Journal, here: local.Local) -> None:
        """Run the lines and show progress. Raises SourceError, Stopped, DeadEnd, StartFailed."""
        options, fleet = self.options, endpoints.fleet(here.settings)
        dead_end = DeadEndWatch(fleet, here.settings)

        def stopping() -> bool:
            for event in here.restart_ended():
                self.say(event)
            return self.stop.is_set()

        client = redis_address.connect(here.redis_url, retry=Retry(_UnlessStopped(stopping), MAX_TRIES))
        view = FleetView(client, here.ledger, fleet)
        feeder = Feeder(
            client,
            here.ledger,
            Reading(
                self.source,
                journal,
                file_options.defaults(options),
                lambda request: file_options.refusal(request, fleet),
            ),
            stopping,
            dedupe=options["dedupe"],
            max_cost_microusd=options["max_cost_microusd"],
            retry_failed=options["retry_failed"],
        )
        progress = self._progress(here.settings)

        def look(tally: Tally) -> None:
            view.look()
            progress.update(tally, view.problems)
            dead_end.look(view.disabled, feeder.requests_in_flight(), answered=bool(tally.providers))

        try:
            with progress:
                feeder.run(look)
        except Stopped:
            if options["workers"] and feeder.in_flight:
                self.say(f"Calls under way have up to {here.drain_s:g} s to end; Ctrl-C again ends it at once.")
            if here.shared and (left := feeder.in_flight):
                waiting = f"{counted(left, 'job')} may still be done by running workers; to cancel the rest"
                self.say(f"{waiting}: turnout batch cancel {journal.batch}")
            raise

    def _progress(self, settings: Settings) -> run_display.Progress:
        """The display of this run. For people, print the providers first."""
        ceiling, providers = self.options["max_cost_microusd"], [*settings.config.providers]
        title = Path(self.source.path).name
        if self.options["as_json"]:
            return run_display.Json(self.console, title, None, ceiling, providers)
        if settings.simulated:
            self.console.print(SIMULATED.format(", ".join(settings.simulated)), style="yellow")
        self.console.print(f"Providers: {', '.join(providers)}")
        kind = run_display.Bar if self.console.is_terminal else run_display.Lines
        return kind(self.console, title, self.source.count(), ceiling, providers)

    def _sum_up(self, tally: Tally, took_s: float, unanswered: bytes | None) -> None:
        """unanswered: the first line without an answer."""
        if self.options["as_json"]:
            self.console.out(to_json_line(run_display.summary(tally)))
            return
        if tally.providers:
            show(self.console, run_display.table(tally))
        self.console.print(run_display.closing_line(tally, took_s, self.options["max_cost_microusd"]))
        if self.output != "-":
            errors = self.options["errors"]
            and_errors = f", lines without an answer in {errors}" if errors not in (None, "-") else ""
            self.say(f"Results are in {self.output}{and_errors}", style="")
        if unanswered is not None:
            lines = counted(tally.failed, "line")
            self.say(f"{lines} without an answer; --retry-failed runs only these again")
            self.say(f"The first one: {reason(unanswered)}")
