"""Lengths of time on a command line: `90`, `90s`, `30m`, `24h`, `7d`."""

from __future__ import annotations

import re

import click

_UNITS_S = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


class Duration(click.ParamType[float]):
    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """In seconds."""
        if isinstance(value, int | float):
            return float(value)
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", str(value).strip())
        if found is None or not float(found[1]):
            self.fail(f"{value!r} is no length of time; write 90s, 30m, 24h or 7d", param, ctx)
        return float(found[1]) * _UNITS_S[found[2]]
