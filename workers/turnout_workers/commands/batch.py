"""`turnout batch`: hand files over to a running fleet, and follow them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import click
import redis

from turnout.batch.detached import Batches
from turnout.batch.jobs import cancel_live
from turnout.batch.journal import RUN
from turnout.batch.output import check_places, write_output
from turnout.batch.record import Record
from turnout.batch.source import Source
from turnout.cli import STOPPED
from turnout.redis_trouble import explain
from turnout.result import dollars
from turnout_workers.commands import file_options, screen
from turnout_workers.commands.screen import add_row, counted, naming, print_json, standard_output, table
from turnout_workers.deployment import Deployment, deployment


@click.group()
def batch() -> None:
    """Hand whole files to a running fleet. Its workers carry on without this terminal."""


def _batches(here: Deployment | None = None) -> Batches:
    here = here or deployment()
    return Batches(here.client, here.ledger)


@batch.command()
@click.argument("source")
@file_options.line_options
def submit(source: str, **options: Any) -> None:
    """Hand over all of SOURCE and print the batch's id."""
    batches = _batches()
    lines = Source(source, options["max_line_bytes"])
    id = batches.submit(lines, file_options.defaults(options), options["max_cost_microusd"], options["dedupe"])
    with naming(id):
        click.echo(id)  # before anything else can fail: the batch is running
    record = batches.record(id)
    if bad := record.counts.get("invalid"):
        total = counted(record.lines, "line")
        click.echo(f"{bad:,} of {total} can't be run; see `turnout batch results {id} -o -`", err=True)


@batch.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def list_batches(as_json: bool) -> None:
    """List batches, latest first."""
    records = _batches().all()
    if as_json:
        for record in records:
            print_json(_state(record))
        return
    if not records:
        click.echo("There are no batches.")
        return
    columns = ("batch", "submitted (UTC)", "state", "lines", "ended", "from")
    listed = table(*columns, numbers=("lines", "ended"))
    for record in records:
        at = datetime.fromtimestamp(record.submitted_at, UTC)
        ended = record.lines - record.counts.get("waiting", 0) - record.counts.get("under_way", 0)
        counts = f"{record.lines:,}", f"{ended:,}"
        add_row(listed, record.id, f"{at:%Y-%m-%d %H:%M:%S}", record.standing, *counts, record.source)
    screen.show(standard_output(), listed)


@batch.command()
@click.argument("id")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(id: str, as_json: bool) -> None:
    """Show how many lines of a batch are done and what it has cost."""
    here = deployment()
    progress = _progress(here, _batches(here).record(id))
    if as_json:
        print_json(progress)
    else:
        click.echo(_line(progress))


@batch.command()
@click.argument("id")
def watch(id: str) -> None:
    """Show a batch's progress until it ends.

    \b
    Exit codes:
      0  every line has an answer
      1  some lines have none
    """
    here, last, away = deployment(), "", False
    record, line = _look(here, id)  # not caught: an error of the first look won't go away
    while True:
        if line != last:
            click.echo(line, err=away)
            last = line
        if record.ended:
            sys.exit(file_options.DONE if record.complete else file_options.SOME_FAILED)
        time.sleep(1)
        try:
            (record, line), away = _look(here, id), False
        except redis.AuthenticationError:  # a subclass of ConnectionError
            raise
        except (redis.ConnectionError, redis.TimeoutError) as error:  # it is away, and may come back
            line, away = explain(error), True


def _look(here: Deployment, id: str) -> tuple[Record, str]:
    """A batch's record, and its progress as a line."""
    record = _batches(here).record(id)
    return record, _line(_progress(here, record))


@batch.command()
@click.argument("id")
@click.option(
    "-o",
    "--output",
    required=True,
    help="File for the results, one line for each line that has ended; - for standard output.",
)
@click.option("--errors", help="File for the lines without an answer; by default they are among the results.")
def results(id: str, output: str, errors: str | None) -> None:
    """Fetch the results so far, in the order of the input.

    \b
    Exit codes:
      0  every line has an answer
      1  some lines have none
      2  the results could not be fetched
      3  the batch is still running
    """
    check_places(output, errors)
    batches = _batches()
    record = batches.record(id)
    written = write_output(batches.output(id), output, errors)
    ended, succeeded = written.total(), written[True]
    click.echo(f"{ended:,} of {counted(record.lines, 'line')} ended, {succeeded:,} with an answer", err=True)
    sys.exit(STOPPED if ended < record.lines else file_options.DONE if succeeded == ended else file_options.SOME_FAILED)


@batch.command()
@click.argument("id")
def cancel(id: str) -> None:
    """Cancel all jobs of a batch that have not ended. Also takes the ID that a stopped `turnout run` printed."""
    here = deployment()
    run = id.startswith(RUN)
    jobs = cancel_live(here.client, here.ledger, id) if run else _batches(here).cancel(id)
    why_none = "; either none of this run's jobs is left, or there was no such run: Redis keeps no record of runs"
    click.echo(f"{counted(jobs, 'job')} cancelled{why_none if run and not jobs else ''}")


@batch.command()
@click.argument("id")
def delete(id: str) -> None:
    """Delete a batch that has ended, with its results. Without this, it expires 7 days after its end."""
    _batches().delete(id)


@batch.command()
@click.argument("id")
def pause(id: str) -> None:
    """Pause a batch: calls under way finish, no new ones start."""
    _move(id, Batches.pause)


@batch.command()
@click.argument("id")
def resume(id: str) -> None:
    """Resume a paused batch."""
    _move(id, Batches.resume)


@batch.command("retry-failed")
@click.argument("id")
@click.option(
    "--max-cost",
    "max_cost_microusd",
    type=file_options.dollars,
    help="New spending limit for the whole batch, in USD; what it has spent so far counts.",
)
def retry_failed(id: str, max_cost_microusd: int | None) -> None:
    """Replay the lines without an answer.

    A line whose deadline passed before it was queued can't be replayed: its request is gone.
    """
    click.echo(f"{counted(_batches().retry_failed(id, max_cost_microusd), 'job')} run again")


def _move(id: str, move: Callable[[Batches, str], None]) -> None:
    here = deployment()
    move(_batches(here), id)
    click.echo(_look(here, id)[1])


def _progress(here: Deployment, record: Record) -> dict[str, Any]:
    (spent, unsure), workers = here.ask(here.ledger.money(record.id), here.ledger.workers())
    return {**_state(record), "workers": len(workers), "spent_microusd": spent, "unsure_microusd": unsure}


def _state(record: Record) -> dict[str, Any]:
    state = {"state": record.standing, "counts": record.counts, "ended": record.ended}
    return {**record.model_dump(mode="json"), **state}


def _line(progress: dict[str, Any]) -> str:
    counts = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in sorted(progress["counts"].items()))
    lines = ": ".join(filter(None, (counted(progress["lines"], "line"), counts)))
    limit = "" if (ceiling := progress["max_cost_microusd"]) is None else f" of {dollars(ceiling)}"
    money = f"{dollars(progress['spent_microusd'])}{limit} spent, {dollars(progress['unsure_microusd'])} unsure"
    idle = "" if progress["ended"] or progress["workers"] else "; no worker is running (turnout worker)"
    return f"{progress['id']}: {progress['state']}; {lines}; {money}{idle}"
