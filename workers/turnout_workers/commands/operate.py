"""What an operator does to jobs and endpoints: list the failed, replay, cancel, isolate, restore."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import click

from turnout.ledger import Facts
from turnout.result import JobResult
from turnout_workers.commands.screen import counted, indented, standard_output
from turnout_workers.deployment import Deployment, deployment
from turnout_workers.state.redis import mark_call
from turnout_workers.state.store import Mark

PAGE = 500
SHOWN = 200
"""Characters of an error in the list; `turnout explain` has it all."""


def _failed(here: Deployment, error: str | None, batch: str | None) -> Iterator[tuple[str, Facts, JobResult]]:
    """Failed jobs whose records are still there, the latest first."""
    for offset in itertools.count(0, PAGE):
        if not (ids := here.ask(here.ledger.failed(PAGE, offset))[0]):
            return
        facts = here.ask(*(here.ledger.facts(job_id) for job_id in ids))
        results = here.ask(*(here.ledger.result(job_id, content=False) for job_id in ids))
        for job_id, job, result in zip(ids, facts, results, strict=True):
            if job is None or result is None or job.state != "failed":
                continue
            code = result.error.code if result.error else ""
            if (error is None or code == error) and (batch is None or job.batch == batch):
                yield job_id, job, result


def _known(here: Deployment, jobs: Sequence[str]) -> list[tuple[str, Facts]]:
    """Those of the jobs that there are. Of the others it is said."""
    facts = dict(zip(jobs, here.ask(*map(here.ledger.facts, jobs)), strict=True))
    for job_id in (job_id for job_id, job in facts.items() if job is None):
        click.echo(f"{job_id}: no such job")
    return [(job_id, job) for job_id, job in facts.items() if job is not None]


@click.command()
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True)
@click.option("--error", help="Only those that ended with this code.")
@click.option("--batch", help="Only those of this batch.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def failed(limit: int, error: str | None, batch: str | None, as_json: bool) -> None:
    """List failed jobs, the latest first."""
    found = list(itertools.islice(_failed(deployment(), error, batch), limit))
    if as_json:
        for _, _, result in found:
            click.echo(result.model_dump_json(exclude_defaults=True, exclude={"response"}))
        return
    console = standard_output()
    for job_id, job, result in found:
        at = datetime.fromtimestamp(job.settled_at or 0, UTC)
        console.print(f"{job_id}  {at:%m-%d %H:%M:%S} UTC  {job.label}, {counted(len(result.attempts), 'attempt')}")
        if result.error:
            console.print(indented(f"{result.error.code}: {result.error.message}"[:SHOWN], 4))
    if not found:
        console.print("No job has failed" + (" like that." if error or batch else "."))


@click.command()
@click.argument("jobs", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every failed job.")
@click.option("--error", help="Failed jobs that ended with this code.")
@click.option("--batch", help="Failed jobs of this batch.")
def replay(jobs: tuple[str, ...], everything: bool, error: str | None, batch: str | None) -> None:
    """Run jobs again that failed, expired or were cancelled. Their story goes on.

    Exit code 1 if a job that is named is not run again.
    """
    if not jobs and not (everything or error or batch):
        raise click.UsageError("name jobs, or give --all, --error or --batch")
    here = deployment()
    found = _known(here, jobs) if jobs else [(job_id, job) for job_id, job, _ in _failed(here, error, batch)]
    done = 0
    for at in range(0, len(found), PAGE):
        page = found[at : at + PAGE]
        replies = here.ask(*(here.ledger.replay(job_id, job.lane, job.batch) for job_id, job in page))
        for (job_id, job), again in zip(page, replies, strict=True):
            done += again
            if not again:
                click.echo(f"{job_id}: is {job.state}, and not run again")
    click.echo(f"{done:,} of {counted(len(set(jobs)) or len(found), 'job')} run again")
    sys.exit(1 if done < len(set(jobs)) else 0)


@click.command()
@click.argument("jobs", nargs=-1, required=True)
def cancel(jobs: tuple[str, ...]) -> None:
    """Cancel jobs, wherever they are. A call in flight is aborted at its worker's next heartbeat.

    Exit code 1 if there is no such job.
    """
    here = deployment()
    ttl_s = here.settings.file.retention.results_s
    found = _known(here, jobs)
    for job_id, job in found:
        ended = here.ask(here.ledger.cancel(job_id, job.batch, ttl_s))[0]
        click.echo(f"{job_id}: {'cancelled' if ended.accepted else f'was {ended.state} already'}")
    sys.exit(1 if len(found) < len(set(jobs)) else 0)


@click.command()
@click.argument("name")
@click.option("--reason", default="by an operator", show_default=True)
def isolate(name: str, reason: str) -> None:
    """Take a provider, or one endpoint of it, out of the fleet until it is restored."""
    _mark("isolated", name, reason)


@click.command()
@click.argument("name")
def restore(name: str) -> None:
    """Bring a provider or endpoint back: whatever it was isolated, disabled, ejected or cooled down for."""
    _mark("restored", name)


def _mark(what: Mark, name: str, reason: str = "") -> None:
    here = deployment()
    ids = here.endpoints(name)
    here.ask(mark_call(here.ledger.keys, what, ids, reason))
    click.echo(f"{what}: {', '.join(ids)}")
