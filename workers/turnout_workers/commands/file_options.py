"""What commands that take a file share: options that hold for all of its lines, and how they end."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click
from pydantic import ValidationError

from turnout.batch.line import Defaults
from turnout.request import MICROUSD_PER_USD, MOST, InferenceRequest, Lane, RoutingStrategy
from turnout.validation import explain
from turnout_workers.routing import eligibility
from turnout_workers.routing.fleet import Fleet
from turnout_workers.routing.profile import JobProfile

Command = TypeVar("Command", bound=Callable[..., Any])
DONE, SOME_FAILED, REFUSED = 0, 1, 4
"""Exit codes, beside those of `turnout.cli`."""
LANE = click.Choice([lane.value for lane in Lane])
STRATEGY = click.Choice([strategy.value for strategy in RoutingStrategy])
_UNITS_S = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def dollars(text: str) -> int:
    """A sum on the command line, in micro-dollars."""
    try:
        usd = float(text)
    except ValueError:
        usd = math.nan
    if not 0 <= usd <= MOST:
        raise click.BadParameter(f"{text!r} is not an amount in dollars from 0 to {MOST:,.0f}")
    return round(usd * MICROUSD_PER_USD)


def duration(text: str) -> float:
    """A length of time on the command line (`90`, `90s`, `30m`, `24h`, `7d`), in seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    if found is None or not float(found[1]):
        raise click.BadParameter(f"{text!r} is not a duration such as 90s, 30m, 24h or 7d")
    return float(found[1]) * _UNITS_S[found[2]]


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
)


def line_options(command: Command) -> Command:
    """Adds them to a command; `defaults` reads those that a line may have itself."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def defaults(options: Mapping[str, Any]) -> Defaults:
    """What a line gets that does not say it itself. Raises UsageError for what no line can have."""

    def said(*names: str) -> dict[str, Any]:
        return {name: options[name] for name in names if options[name] not in (None, ())}

    found = Defaults(said("model"), said("strategy", "lane", "only", "deadline_s"))
    try:
        InferenceRequest.model_validate({"prompt": "", **found.request, "constraints": found.constraints})
    except ValidationError as error:
        raise click.UsageError(explain(error)) from error
    return found


def kept(options: Mapping[str, Any]) -> dict[str, Any]:
    """What may not change while a file is under way: the ids of its jobs depend on it."""
    told = defaults(options)
    return {**told.request, **told.constraints, **({"dedupe": True} if options["dedupe"] else {})}


def refusal(request: InferenceRequest, fleet: Fleet) -> str | None:
    """Why no endpoint of the fleet can ever serve it; None: one can."""
    found = eligibility.refusal(JobProfile.of(request), fleet)
    return None if found is None else str(found)
