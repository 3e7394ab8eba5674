"""Commands for jobs and endpoints: list failed jobs, replay, cancel, isolate, restore."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import click

from turnout.cli import UNUSABLE
from turnout.ledger import Facts
from turnout.printable import printable
from turnout.result import JobResult
from turnout_workers.commands.file_options import DONE, SOME_FAILED
from turnout_workers.commands.screen import add_row, counted, indented, print_json, show, standard_output, table
from turnout_workers.deployment import Deployment, deployment
from turnout_workers.state.redis_store import mark_operation
from turnout_workers.state.store import Mark

PAGE = 500
SHOWN = 200
"""Characters of an error in the list; `turnout explain` shows all of it."""
CHOSEN_BY = {
    "batch": "of this batch",
    "provider": "whose last call went to this provider",
    "error": "that ended with this code",
}
Command = TypeVar("Command", bound=Callable[..., Any])


def _selecting(command: Command) -> Command:
    """Add the options that select failed jobs."""
    for name, which in CHOSEN_BY.items():
        command = click.option(f"--{name}", help=f"Only failed jobs {which}.")(command)
    return command


def _failed(here: Deployment, **wanted: str | None) -> Iterator[tuple[Facts, JobResult]]:
    """Failed jobs whose records are still there, the latest first."""
    for offset in itertools.count(0, PAGE):
        if not (ids := here.ask(here.ledger.failed(PAGE, offset))[0]):
            return
        facts = here.ask(*(here.ledger.facts(job_id) for job_id in ids))
        results = here.ask(*(here.ledger.result(job_id, content=False) for job_id in ids))
        for job, result in zip(facts, results, strict=True):
            if job is None or result is None or job.state != "failed":
                continue
            fields = {**_cause(result), "batch": job.batch}
            if all(value in (None, fields[name]) for name, value in wanted.items()):
                yield job, result


def _cause(result: JobResult) -> dict[str, str]:
    """Its error code, and the provider called last, if any."""
    last = result.attempts[-1].provider if result.attempts else ""
    return {"error": result.error.code if result.error else "", "provider": last}


def _known(here: Deployment, jobs: Sequence[str]) -> list[tuple[str, Facts]]:
    """Those of the jobs that exist. The others are reported on standard error."""
    facts = dict(zip(jobs, here.ask(*map(here.ledger.facts, jobs)), strict=True))
    for job_id in (job_id for job_id, job in facts.items() if job is None):
        click.echo(printable(f"{job_id}: no such job"), err=True)
    return [(job_id, job) for job_id, job in facts.items() if job is not None]


@click.command()
@click.option("--limit", type=click.IntRange(1), default=50, help="How many to list.")
@_selecting
@click.option("--count", is_flag=True, help="Count them all, by error and by the provider called last.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def failed(limit: int, count: bool, as_json: bool, **wanted: str | None) -> None:
    """List failed jobs, latest first."""
    matching = _failed(deployment(), **wanted)
    listed = itertools.islice(matching, limit)
    if as_json:
        for fields in _causes(matching) if count else itertools.starmap(_fields, listed):
            print_json(fields)
    elif count:
        causes = table("error", "provider", "jobs", "latest", numbers=("jobs",))
        for cause in _causes(matching):
            add_row(causes, cause["error"], cause["provider"], f"{cause['jobs']:,}", cause["latest"])
        show(standard_output(), causes)
    else:
        console, shown = standard_output(), list(listed)
        for job, result in shown:
            at, attempts = datetime.fromtimestamp(job.settled_at or 0, UTC), counted(len(result.attempts), "attempt")
            console.print(f"{result.id}  {at:%Y-%m-%d %H:%M:%S} UTC  {job.label}, {attempts}")
            if result.error:
                console.print(indented(f"{result.error.code}: {result.error.message}"[:SHOWN], 4))
        if not shown:
            console.print("No job has failed" + (" like that." if any(wanted.values()) else "."))
        elif next(matching, None):
            console.print("… and more: --count counts them all by cause, --limit lists more of them")


def _fields(job: Facts, result: JobResult) -> dict[str, Any]:
    facts = job.model_dump(mode="json", include={"lane", "label", "batch"})
    return result.model_dump(mode="json", exclude={"response"}) | facts


def _causes(failed_jobs: Iterable[tuple[Facts, JobResult]]) -> list[dict[str, Any]]:
    """The causes of failed jobs, the most frequent first, each with its latest job, for `turnout explain`."""
    causes: dict[tuple[str, ...], dict[str, Any]] = {}
    for _, result in failed_jobs:
        cause = _cause(result)
        row = causes.setdefault(tuple(cause.values()), {**cause, "jobs": 0, "latest": result.id})
        row["jobs"] += 1
    return sorted(causes.values(), key=lambda row: -row["jobs"])


@click.command()
@click.argument("jobs", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every failed job.")
@_selecting
def replay(jobs: tuple[str, ...], everything: bool, **wanted: str | None) -> None:
    """Run jobs again that failed, expired or were cancelled.

    \b
    Exit codes:
      0  all of them run again
      1  a job that you named can't be run again
      2  there is no such job
    """
    if bool(jobs) == (everything or any(wanted.values())):
        raise click.UsageError("name jobs, or give --all, --error, --provider or --batch")
    here = deployment()
    selected = _known(here, jobs) if jobs else [(result.id, job) for job, result in _failed(here, **wanted)]
    done, named = 0, len(set(jobs))
    for at in range(0, len(selected), PAGE):
        page = selected[at : at + PAGE]
        replies = here.ask(*(here.ledger.replay(job_id, job.batch) for job_id, job in page))
        for (job_id, job), again in zip(page, replies, strict=True):
            done += again
            if not again:
                click.echo(printable(f"{job_id}: is {job.state}, and not run again"))
    click.echo(f"{done:,} of {counted(named or len(selected), 'job')} run again")
    sys.exit(UNUSABLE if len(selected) < named else SOME_FAILED if done < named else DONE)


@click.command()
@click.argument("jobs", nargs=-1, required=True)
def cancel(jobs: tuple[str, ...]) -> None:
    """Cancel jobs, wherever they are.

    A call in flight is aborted at its worker's next heartbeat. The exit code is 2 if there is no such job.
    """
    here = deployment()
    selected = _known(here, jobs)
    for job_id, job in selected:
        ended = here.ask(here.ledger.cancel(job_id, job.batch))[0]
        click.echo(printable(f"{job_id}: {'cancelled' if ended.accepted else f'was {ended.state} already'}"))
    sys.exit(UNUSABLE if len(selected) < len(set(jobs)) else DONE)


@click.command()
@click.argument("name")
@click.option("--reason", default="by an operator", help="Shown in `turnout status`.")
def isolate(name: str, reason: str) -> None:
    """Take a provider or one endpoint out of the fleet. It stays out until `turnout restore`."""
    _mark("isolated", name, reason)


@click.command()
@click.argument("name")
def restore(name: str) -> None:
    """Bring a provider or endpoint back. Ends an isolation, disabling, ejection or cooldown."""
    _mark("restored", name)


def _mark(what: Mark, name: str, reason: str = "") -> None:
    here = deployment()
    ids = here.endpoints(name)
    here.ask(mark_operation(here.ledger.keys, what, ids, reason))
    click.echo(f"{what}: {', '.join(ids)}")
