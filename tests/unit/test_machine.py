"""What commands tell programs: the units, in whatever units it is kept."""

from __future__ import annotations

import json
import math

import pytest

from turnout_workers.commands.screen import print_json


def test_money_is_in_dollars_and_an_unknown_price_is_null(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"cost_microusd": 44, "calls": [{"cost_microusd": None}, {"cost_microusd": math.inf}], "at": 1.5})
    assert json.loads(capsys.readouterr().out) == {
        "cost_usd": 0.000044,
        "calls": [{"cost_usd": None}, {"cost_usd": None}],
        "at": 1.5,
    }


def test_a_callers_own_label_keeps_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    told = {"metadata": {"limit_microusd": "5"}}
    print_json(told)
    assert json.loads(capsys.readouterr().out) == told
