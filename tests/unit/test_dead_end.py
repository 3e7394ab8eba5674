"""When `turnout run` gives up waiting: what could serve the rest refuses us, and goes on doing so."""

from __future__ import annotations

import pytest

from turnout import InferenceRequest
from turnout_workers import config
from turnout_workers.commands.dead_end import MIN_WAIT_S, DeadEnd, DeadEndWatch
from turnout_workers.config import endpoints

TOML = """
[router]
health_check_interval = 40.0
[providers.groq]
api_key_env = ["GROQ_API_KEY", "SECOND_KEY"]
models = ["small"]
[providers.local]
base_url = "http://127.0.0.1:9"
models = ["small", "large"]
"""
SETTINGS = config.load(config.Source("here", TOML), {"GROQ_API_KEY": "a", "SECOND_KEY": "b"})
SMALL, LARGE = InferenceRequest(prompt="?", model="small"), InferenceRequest(prompt="?", model="large")
ALL = dict.fromkeys(("groq/small", "groq/small#2", "local/small", "local/large"), "unauthorized: no")
GROQ = {id: why for id, why in ALL.items() if id.startswith("groq")}


class Run:
    def __init__(self) -> None:
        self.now = 100.0
        self.dead_end = DeadEndWatch(endpoints.fleet(SETTINGS), SETTINGS, lambda: self.now)

    def stops(
        self, disabled: dict[str, str], *waiting: InferenceRequest, after_s: float, answered: bool = False
    ) -> bool:
        """Whether it does if nothing changes for so long."""
        self.dead_end.look(disabled, waiting, answered)
        self.now += after_s
        try:
            self.dead_end.look(disabled, waiting, answered)
        except DeadEnd as error:
            self.told = str(error)
            return True
        return False


@pytest.mark.parametrize(
    ("disabled", "waiting", "stops"),
    [
        (ALL, [SMALL, LARGE], True),
        (ALL, [], False),
        ({}, [SMALL], False),
        (GROQ, [SMALL], False),
        (ALL.keys() - {"local/large"}, [SMALL], True),
        (ALL.keys() - {"local/large"}, [SMALL, LARGE], False),
    ],
)
def test_a_run_stops_when_nothing_is_left_for_any_of_its_lines(
    disabled: set[str], waiting: list[InferenceRequest], stops: bool
) -> None:
    assert Run().stops(dict.fromkeys(disabled, "no"), *waiting, after_s=MIN_WAIT_S) is stops


def test_a_run_that_had_answers_waits_until_its_providers_were_asked_again() -> None:
    assert not Run().stops(ALL, SMALL, after_s=59.9, answered=True)
    assert Run().stops(ALL, SMALL, after_s=60.0, answered=True)


def test_a_provider_that_came_back_meanwhile_is_waited_for_anew() -> None:
    run = Run()
    assert not run.stops(ALL, SMALL, after_s=MIN_WAIT_S - 1)
    assert not run.stops({}, SMALL, after_s=MIN_WAIT_S)
    assert not run.stops(ALL, SMALL, after_s=MIN_WAIT_S - 1)


def test_a_refusal_that_is_worded_anew_each_time_is_the_same_one() -> None:
    run = Run()
    assert not run.stops(dict.fromkeys(ALL, "no (request 1)"), SMALL, after_s=MIN_WAIT_S - 1)
    assert run.stops(dict.fromkeys(ALL, "no (request 2)"), SMALL, after_s=1)


def test_a_run_that_stops_says_which_key_is_refused() -> None:
    run = Run()
    assert run.stops(ALL, SMALL, after_s=MIN_WAIT_S)
    assert run.told.splitlines() == [
        "no endpoint is left that can serve the remaining lines:",
        "  groq (its key: GROQ_API_KEY or SECOND_KEY): unauthorized: no",
        "  local: unauthorized: no",
    ]
