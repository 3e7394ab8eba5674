"""What `pip install turnout` alone gives: to a process that finds only what pyproject.toml asks for without extras."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions, requires

import pytest
from packaging.requirements import Requirement

BLOCKED = """
import sys
class Missing:
    def find_spec(self, name, *_):
        if name.split(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
missing = set(sys.argv.pop(1).split(","))
sys.meta_path.insert(0, Missing())
"""
USED = """
from turnout import Cancelled, Client
with Client(sys.argv[1]) as client:
    job, *more = client.submit_many(["A?", "B?"], stream=True)
    assert job.status() == "queued" and job.cancel() and more[0].cancel()
    assert [event["event"] for event in job.events()] == ["queued", "cancelled"]
    assert len(list(client.as_completed([job, *more], 10))) == 2
    try:
        list(job.stream())
    except Cancelled as error:
        print(error.result.status)
"""
WINDOWS = """
import os
del os.register_at_fork, os.fork
missing.add("fcntl")
"""
COMMAND = """
from turnout.cli import main
main()
"""


def names(distribution: str, extra: str = "") -> Iterator[str]:
    """It, and all that it needs."""
    yield distribution.lower().replace("_", "-")
    for one in map(Requirement, requires(distribution) or ()):
        if one.marker is None or one.marker.evaluate({"extra": extra}):
            yield from names(one.name)


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    light = set(names("turnout"))
    missing = [
        module
        for module, owners in packages_distributions().items()
        if not light & {owner.lower().replace("_", "-") for owner in owners}
    ]
    assert {"celery", "aiohttp", "rich", "cryptography", "opentelemetry"} <= set(missing)
    command = [sys.executable, "-c", BLOCKED + code, ",".join(missing), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("system", ["", WINDOWS], ids=["here", "without forks"])
def test_the_client_does_all_it_can(redis_url: str, system: str) -> None:
    told = python(system + USED, redis_url)
    assert (told.stderr, told.stdout.strip()) == ("", "cancelled")


def test_the_command_lists_what_is_not_installed_and_says_how_to_get_it() -> None:
    listed = python(COMMAND, "--help")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert "worker     (not installed: pip install 'turnout[worker]')" in listed.stdout
    refused = python(COMMAND, "worker", "-c", "5")
    assert refused.returncode == 2
    assert "`turnout worker` needs the worker's parts" in refused.stderr
