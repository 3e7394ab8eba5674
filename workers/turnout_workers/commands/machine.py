"""What commands tell programs, with `--json`: an object a line, with times in seconds and money in dollars, in whatever
units they are kept."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import click

from turnout.request import MICROUSD_PER_USD


def tell(told: Mapping[str, Any]) -> None:
    click.echo(json.dumps(_in_usd(told)))


def _in_usd(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(_field(name, one) for name, one in value.items())
    return [*map(_in_usd, value)] if isinstance(value, list | tuple) else value


def _field(name: str, value: Any) -> tuple[str, Any]:
    amount = name.removesuffix("_microusd")
    if amount == name or not isinstance(value, float | int | None):  # a text is somebody's label
        return name, _in_usd(value)
    # JSON has no infinity, by which an unknown price is compared.
    return f"{amount}_usd", None if value is None or value == math.inf else value / MICROUSD_PER_USD
