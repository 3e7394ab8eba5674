"""`turnout submit`: one job, by a client of the configured Redis."""

from __future__ import annotations

import sys

import click
from pydantic import ValidationError

from turnout import Client
from turnout.request import Lane
from turnout.validation import explain
from turnout_workers.deployment import deployment


@click.command()
@click.argument("prompt", required=False)
@click.option("--model", "models", multiple=True, help="An acceptable model. Repeatable.")
@click.option("--lane", type=click.Choice([one.value for one in Lane]), default="interactive", show_default=True)
@click.option("--idempotency-key", help="The same key and content are the same job.")
@click.option("--wait", is_flag=True, help="Print the answer, not the job's id.")
def submit(prompt: str | None, models: tuple[str, ...], lane: str, idempotency_key: str | None, wait: bool) -> None:
    """Submit one job, of PROMPT or of what comes on stdin."""
    text = sys.stdin.read() if prompt is None or prompt == "-" else prompt
    if not text.strip():
        raise click.UsageError("there is no prompt: give one as the argument or on stdin")
    file = deployment().settings.file
    try:
        with Client(file.redis_url, file.namespace) as client:
            job = client.submit(text, model=models or None, lane=lane, idempotency_key=idempotency_key)
            click.echo(job.wait().text if wait else job.id)
    except ValidationError as error:
        raise click.ClickException(explain(error)) from error
    except (ValueError, LookupError) as error:
        raise click.ClickException(str(error)) from error
