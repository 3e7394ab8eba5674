"""Which jobs stand in one line when nothing has room for them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from tests.unit.routing.fleets import job

from turnout_workers.attempts.parking import line_of
from turnout_workers.routing.profile import JobProfile

NONE: frozenset[str] = frozenset()


def test_jobs_of_equal_wishes_stand_in_one_line_whenever_they_came_and_whenever_they_are_due() -> None:
    lines = {line_of(wish, NONE, "t", None) for wish in (job(), job(deadline_s=5), job(deadline_s=600))}
    assert len(lines) == 1


@pytest.mark.parametrize(
    "other",
    [
        job(lane="batch"),
        job(only=("groq",)),
        job(ignore=("nobody",)),
        job(max_latency_s=2),
        job(strategy="cost"),
        job(max_cost_usd=1),
        JobProfile(input_tokens=10_000),
    ],
)
def test_what_another_wish_or_size_keeps_waiting_holds_up_no_other(other: JobProfile) -> None:
    assert line_of(other, NONE, None, None) != line_of(job(), NONE, None, None)


def test_tenants_and_batches_and_those_that_failed_somewhere_have_lines_of_their_own() -> None:
    lines = {line_of(job(), NONE, *whose) for whose in ((None, None), ("t", None), (None, "b"))}
    assert len(lines | {line_of(job(), frozenset({"groq/llama"}), None, None)}) == 4


def test_all_workers_name_a_line_alike() -> None:
    """Their hashes of texts differ, and so the order of their sets."""
    code = (
        "from tests.unit.routing.fleets import *; from turnout_workers.attempts.parking import line_of; "
        "wish = replace(job(), requirements=replace(job().requirements, unsuited=frozenset('abcdefgh'))); "
        "print(line_of(wish, frozenset('abcdefgh'), None, None))"
    )
    told = {
        subprocess.check_output([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed})
        for seed in ("1", "2", "3")
    }
    assert len(told) == 1
