"""Which jobs wait in one group when nothing has room for them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from tests.unit.routing.fleets import NOW, job, request

from turnout_workers.attempts.parking import wait_group_of
from turnout_workers.routing.profile import JobProfile

NONE: frozenset[str] = frozenset()


def test_jobs_with_equal_constraints_and_similar_haste_wait_in_one_group_whenever_they_came() -> None:
    def lines(*left_s: float) -> int:
        due = (JobProfile.of(request(), deadline=NOW + left) for left in left_s)
        return len({wait_group_of(profile, NONE, "t", None, NOW) for profile in due})

    assert lines(40, 50, 60) == lines(600, 1000) == 1
    assert lines(-5, 0, 0.5) == 1
    assert lines(5, 50, 500) == 3
    assert len({wait_group_of(job(), NONE, "t", None, at) for at in (NOW, NOW + 50)}) == 1


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
def test_a_job_of_other_constraints_or_size_holds_up_no_other(other: JobProfile) -> None:
    assert wait_group_of(other, NONE, None, None, NOW) != wait_group_of(job(), NONE, None, None, NOW)


def test_tenants_and_batches_and_those_that_failed_somewhere_have_lines_of_their_own() -> None:
    groups = {wait_group_of(job(), NONE, *whose, NOW) for whose in ((None, None), ("t", None), (None, "b"))}
    assert len(groups | {wait_group_of(job(), frozenset({"groq/llama"}), None, None, NOW)}) == 4


def test_all_workers_name_a_line_alike() -> None:
    """Their hashes of texts differ, and so the order of their sets."""
    code = (
        "from tests.unit.routing.fleets import *; from turnout_workers.attempts.parking import wait_group_of; "
        "profile = replace(job(), requirements=replace(job().requirements, unsuited=frozenset('abcdefgh'))); "
        "print(wait_group_of(profile, frozenset('abcdefgh'), None, None, NOW))"
    )
    names = {
        subprocess.check_output([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed})
        for seed in ("1", "2", "3")
    }
    assert len(names) == 1
