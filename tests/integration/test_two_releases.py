"""Two releases at once, each from a tree of its own: producers and workers of both on one Redis and one fleet."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from tests.chaos import stand as stands
from tests.chaos.fleet import one_provider
from tests.chaos.stand import Stand, standing

from turnout.messages import FunctionDefinition, Tool
from turnout.result import JobResult, Problem
from turnout_workers.local import process

ROOT = Path(__file__).parents[2]
FLEET = one_provider()
CLIENT = """
from turnout import Client
with Client() as client:
    asked = [(f"Question next-{n}?", f"next-{n}") for n in range(20)]
    jobs = [client.submit(prompt, idempotency_key=key, max_output_tokens=8) for prompt, key in asked]
"""
SUBMIT, READ = CLIENT, CLIENT + "    print(sum(bool(job.wait(20).text) for job in jobs))"


TOOL = Tool(function=FunctionDefinition(name="look_up", parameters={"type": "object"}))


def within(told: Any) -> set[type[BaseModel]]:
    """All models of which a value of this type may consist."""
    if isinstance(told, type) and issubclass(told, BaseModel):
        return {told}.union(*(within(field.annotation) for field in told.model_fields.values()))
    return set[type[BaseModel]]().union(*map(within, get_args(told)))


class Release:
    """A release as an operator has it installed beside this one."""

    def __init__(self, folder: Path, stand: Stand, contract: int) -> None:
        for package in ("tasks", "workers"):
            shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
        request = folder / "tasks/turnout/request.py"
        _rewrite(request, r"^(CONTRACT_VERSION) = \d+", rf"\1 = {contract}")
        keeping = folder / "workers/turnout_workers/background/housekeeping.py"
        _rewrite(keeping, r"^(LOST_AFTER_S) = .*", rf"\1 = {stands.LOST_AFTER_S}")
        for model in within(JobResult):
            source = Path(inspect.getfile(model)).relative_to(ROOT)
            field = f"    new_in_{model.__name__}: float = Field(default_factory=__import__('random').random)\n"
            _rewrite(folder / source, rf"^class {model.__name__}\(.*\n", rf"\g<0>{field}")
        self.environ: Mapping[str, str] = {
            "PYTHONPATH": os.pathsep.join(str(folder / package) for package in ("tasks", "workers")),
            **stand.environ,
        }
        self.log = folder / "worker.log"

    def run(self, script: str) -> str:
        return subprocess.check_output([sys.executable, "-c", script], env={**os.environ, **self.environ}, text=True)

    def start_worker(self) -> subprocess.Popen[bytes]:
        worker = process.start([sys.executable, "-m", "turnout", "worker", "-n", "next@%h"], self.log, self.environ)
        process.wait_until(lambda: " ready." in self.log.read_text("utf-8", "replace"), worker, self.log, 60)
        return worker


def _rewrite(file: Path, pattern: str, by: str) -> None:
    text, changed = re.subn(pattern, by, file.read_text(), count=1, flags=re.M)
    assert changed == 1
    file.write_text(text)


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    with standing(tmp_path, FLEET, concurrency=20, lease_s=30.0) as stand:
        yield stand


def test_releases_of_one_contract_share_the_work(stand: Stand, tmp_path: Path) -> None:
    ids: list[str] = []
    beside = Release(tmp_path / "next", stand, contract=1)
    this = stand.start_worker(concurrency=5)
    worker = beside.start_worker()
    try:
        beside.run(SUBMIT)

        def are_settled() -> bool:
            return stand.settled() == len(ids) + 20

        def by_next() -> list[bytes]:
            return [text for text in stand.client.mget(map(stand.ledger.keys.result, ids)) if b"new_in_" in text]

        def more() -> None:
            """So that each has its share in the end, however long it stands still."""
            if are_settled():
                ids.extend(new := [f"job-{n}" for n in range(len(ids), len(ids) + 200)])
                stand.submit(new, tools=[TOOL], tool_choice="required")

        stand.until(lambda: bool(ids) and are_settled() and 0 < len(by_next()) < len(ids), 60, more)
        assert stand.outcomes(ids) == {"succeeded": len(ids)}
        assert beside.run(READ) == "20\n"
        assert set(stand.unrecorded_calls()) == {0}
        told = {name.decode() for name in re.findall(rb"new_in_(\w+)", by_next()[0])}
        assert told == {model.__name__ for model in within(JobResult) - {Problem}}
        assert all(result and result.succeeded for result in stand.results(ids)), "each reads what both have written"
        assert " succeeded: " in beside.log.read_text()
        assert " succeeded: " in this.said
    finally:
        process.stop(worker)


def test_a_release_leaves_the_jobs_of_another_contract_to_its_workers(stand: Stand, tmp_path: Path) -> None:
    ids = [f"job-{n}" for n in range(20)]
    beside = Release(tmp_path / "next", stand, contract=2)
    old = stand.start_worker()
    beside.run(SUBMIT)
    stand.submit(ids)
    stand.until(lambda: stand.settled() == len(ids) and "a record version that this release" in old.said, 60)
    assert stand.outcomes(ids) == {"succeeded": len(ids)}
    worker = beside.start_worker()
    try:
        stand.until(lambda: stand.settled() > len(ids), 60)  # although the old worker is still there
        stand.stop_worker(old)
        stand.until(lambda: stand.settled() == len(ids) + 20, 60)
        assert beside.run(READ) == "20\n"
        assert {job["calls"] for job in stand.oracle()["jobs"].values()} == {1}
    finally:
        process.stop(worker)
