"""Lengths of time on a command line."""

from __future__ import annotations

import click
import pytest

from turnout_workers.commands.file_options import duration


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("24h", 86_400), ("7d", 604_800)])
def test_a_length_of_time_is_read_in_its_unit(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "-5", "24 hours", "1w", "h"])
def test_what_is_none_says_what_to_write(text: str) -> None:
    with pytest.raises(click.BadParameter, match="90s, 30m, 24h or 7d"):
        duration(text)
