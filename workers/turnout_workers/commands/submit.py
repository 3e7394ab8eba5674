"""`turnout submit` and `turnout result`: submit one job to the configured Redis, and print its answer."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
from pydantic import ValidationError
from redis.exceptions import RedisError

from turnout import Client
from turnout.batch.render import result_fields
from turnout.cli import STOPPED
from turnout.errors import JobError
from turnout.printable import printable
from turnout.request import InferenceResponse
from turnout.validation import explain
from turnout_workers.commands.file_options import DONE, LANE, SOME_FAILED
from turnout_workers.commands.screen import naming, print_json, safe_for_terminal
from turnout_workers.deployment import deployment


@click.command()
@click.argument("prompt", required=False)
@click.option("--model", "models", multiple=True, help="An acceptable model. Repeatable.")
@click.option("--lane", type=LANE, default="interactive")
@click.option("--idempotency-key", help="Submitting the same key and content again returns the same job.")
@click.option("--wait", is_flag=True, help="Wait, and print the answer instead of the job's id.")
def submit(prompt: str | None, models: tuple[str, ...], lane: str, idempotency_key: str | None, wait: bool) -> None:
    """Submit one job: PROMPT, or the text on standard input. With --wait, the exit code is 1 if it has no answer."""
    text = sys.stdin.read() if prompt is None or prompt == "-" else prompt
    if not text.strip():
        raise click.UsageError("there is no prompt: give one as the argument or on stdin")
    with _client() as client:
        job = client.submit(text, model=models or None, lane=lane, idempotency_key=idempotency_key)
        with naming(job.id):
            if not wait:
                click.echo(job.id)
                return
            try:
                _print(job.wait)
            except (KeyboardInterrupt, RedisError):
                commands = f"`turnout result {job.id}` prints its answer, `turnout cancel {job.id}` ends it"
                click.echo(f"The job goes on: {commands}", err=True)
                raise


@click.command()
@click.argument("job")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, as in the output of `turnout run`.")
def result(job: str, as_json: bool) -> None:
    """Print a job's answer.

    \b
    Exit codes:
      0  here it is
      1  the job ended without an answer
      2  there is no such job
      3  the job is still running
    """
    with _client() as client:
        handle = client.job(job)
        if (ended := handle.result()) is None:
            click.echo(printable(f"job {job} hasn't ended: it is {handle.status()}"), err=True)
            sys.exit(STOPPED)
    if as_json:
        print_json({"id": ended.id, **result_fields(ended)})
        sys.exit(DONE if ended.succeeded else SOME_FAILED)
    _print(ended.answer)


@contextmanager
def _client() -> Iterator[Client]:
    """A client whose refusals become one-line errors."""
    config = deployment().settings.config
    try:
        with Client(config.redis_url, config.namespace) as client:
            yield client
    except ValidationError as error:
        raise click.ClickException(explain(error)) from error
    except (ValueError, LookupError) as error:
        raise click.ClickException(printable(str(error))) from error


def _print(answer: Callable[[], InferenceResponse]) -> None:
    """Print the answer; without one, print why and exit."""
    try:
        text = answer().text
    except JobError as error:
        click.echo(printable(f"Error: {error}"), err=True)
        sys.exit(SOME_FAILED)
    click.echo(safe_for_terminal(text))
