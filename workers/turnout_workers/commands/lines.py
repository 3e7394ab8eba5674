"""What commands that take a file share: options that hold for all of its lines, and how they end."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from turnout.batch.line import Defaults
from turnout.request import MICROUSD_PER_USD, MOST, InferenceRequest, Lane, RoutingStrategy
from turnout_workers.commands.duration import Duration
from turnout_workers.routing import eligibility
from turnout_workers.routing.fleet import Fleet
from turnout_workers.routing.profile import JobProfile

Command = TypeVar("Command", bound=Callable[..., Any])
DONE, SOME_FAILED, UNUSABLE, STOPPED, REFUSED = range(5)
"""Exit codes."""


class Dollars(click.ParamType[int]):
    name = "dollars"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """In micro-dollars."""
        try:
            usd = float(str(value))
        except ValueError:
            usd = math.nan
        if not 0 <= usd <= MOST:
            self.fail(f"{value!r} is no sum of dollars from 0 to {MOST:,.0f}", param, ctx)
        return round(usd * MICROUSD_PER_USD)


OPTIONS = (
    click.option("--model", help="Model, for lines that name none."),
    click.option(
        "--strategy",
        type=click.Choice([one.value for one in RoutingStrategy]),
        help="Strategy, for lines that name none.",
    ),
    click.option("--lane", type=click.Choice([one.value for one in Lane]), default="batch", show_default=True),
    click.option("--only", multiple=True, help="Provider to use, for lines that name none. Repeatable."),
    click.option(
        "--max-cost",
        "max_cost_microusd",
        type=Dollars(),
        help="Most to spend on the whole file, in USD; after that its lines expire.",
    ),
    click.option("--dedupe", is_flag=True, help="Ask identical requests once."),
    click.option(
        "--deadline",
        "--completion-window",
        "deadline",
        type=Duration(),
        help="Time that a line has once it is queued: 90s, 30m, 24h.",
    ),
)


def line_options(command: Command) -> Command:
    """Adds them to a command; `defaults` reads those that a line may have itself."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def defaults(options: Mapping[str, Any]) -> Defaults:
    """What a line gets that does not say it itself."""
    constraints = {name: options[name] for name in ("strategy", "lane")}
    constraints |= {"only": list(options["only"]) or None, "deadline_s": options["deadline"]}
    request = {"model": options["model"]}
    return Defaults(*({k: v for k, v in told.items() if v is not None} for told in (request, constraints)))


def refusal(request: InferenceRequest, fleet: Fleet) -> str | None:
    """Why no endpoint of the fleet can ever serve it; None: one can."""
    found = eligibility.refusal(JobProfile.of(request), fleet)
    return None if found is None else str(found)
