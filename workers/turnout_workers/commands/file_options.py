"""What commands that take a file share: options for all of its lines, and exit codes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click
from pydantic import ValidationError

from turnout.batch.line import MAX_LINE_BYTES, Defaults
from turnout.request import MAX_NUMBER, MICROUSD_PER_USD, InferenceRequest, Lane, RoutingStrategy
from turnout.validation import explain
from turnout_workers.routing import eligibility
from turnout_workers.routing.fleet import Fleet
from turnout_workers.routing.profile import JobProfile

Command = TypeVar("Command", bound=Callable[..., Any])
DONE, SOME_FAILED, REFUSED = 0, 1, 4
"""Exit codes, in addition to those of `turnout.cli`."""
LANE = click.Choice([lane.value for lane in Lane])
STRATEGY = click.Choice([strategy.value for strategy in RoutingStrategy])
_UNITS_S = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def dollars(text: str) -> int:
    """Parse an amount of dollars, in micro-dollars."""
    try:
        usd = float(text)
    except ValueError:
        usd = math.nan
    if not 0 <= usd <= MAX_NUMBER:
        raise click.BadParameter(f"{text!r} is not an amount in dollars from 0 to {MAX_NUMBER:,.0f}")
    return round(usd * MICROUSD_PER_USD)


def duration(text: str) -> float:
    """Parse a duration (`90`, `90s`, `30m`, `24h`, `7d`), in seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    if match is None or not float(match[1]):
        raise click.BadParameter(f"{text!r} is not a duration such as 90s, 30m, 24h or 7d")
    return float(match[1]) * _UNITS_S[match[2]]


OPTIONS = (
    click.option("--model", help="Model for lines that name none."),
    click.option("--strategy", type=STRATEGY, help="Strategy for lines that name none."),
    click.option("--lane", type=LANE, default="batch", help="Lane for lines that name none."),
    click.option("--only", multiple=True, help="Provider for lines that name none. Repeatable."),
    click.option(
        "--max-cost",
        "max_cost_microusd",
        type=dollars,
        help="Spending limit for the whole file, in USD. Lines that don't fit under it expire.",
    ),
    click.option("--dedupe", is_flag=True, help="Send identical requests once."),
    click.option(
        "--deadline",
        "--completion-window",
        "deadline_s",
        type=duration,
        help="How long a line may take once it is queued: 90s, 30m, 24h.",
    ),
    click.option(
        "--max-line-bytes",
        type=click.IntRange(1),
        default=MAX_LINE_BYTES,
        help="Longest line that is accepted, in bytes. Raise it for large images.",
    ),
)


def line_options(command: Command) -> Command:
    """Add these options to a command. `defaults` reads those that a line may set itself."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def defaults(options: Mapping[str, Any]) -> Defaults:
    """Values for lines that don't set them. Raises UsageError if they aren't valid for any line."""

    def chosen(*names: str) -> dict[str, Any]:
        return {name: options[name] for name in names if options[name] not in (None, ())}

    values = Defaults(chosen("model"), chosen("strategy", "lane", "only", "deadline_s"))
    try:
        InferenceRequest.model_validate({"prompt": "", **values.request, "constraints": values.constraints})
    except ValidationError as error:
        raise click.UsageError(explain(error)) from error
    return values


def fixed_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that may not change until a file is finished, because its jobs' ids depend on them."""
    values = defaults(options)
    return {**values.request, **values.constraints, **({"dedupe": True} if options["dedupe"] else {})}


def refusal(request: InferenceRequest, fleet: Fleet) -> str | None:
    """Why no endpoint of the fleet can ever serve the request; None: one can."""
    refused = eligibility.refusal(JobProfile.of(request), fleet)
    return None if refused is None else str(refused)
