"""The files in compose/ against the schemas and linters of those who will read them."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from turnout.request import Lane
from turnout_workers import config

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "compose"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]


@pytest.mark.parametrize(
    "command",
    [
        ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", "compose/compose.yaml"],
        ["yamllint", "-s", "-c", "compose/.yamllint.yaml", "compose"],
        ["hadolint", "compose/Dockerfile"],
        ["kubernetes-validate", "--strict", "compose/kubernetes/worker.yaml"],
    ],
    ids=lambda command: command[0],
)
def test_a_checker_accepts(command: list[str]) -> None:
    told = subprocess.run([Path(sys.executable).parent / command[0], *command[1:]], cwd=ROOT, capture_output=True)
    assert told.returncode == 0, (told.stdout + told.stderr).decode()


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_is_hardened(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert not re.search(r":latest$", service["image"].replace("${TURNOUT_VERSION:-latest}", "0"))


@pytest.mark.parametrize("name", SERVICES)
def test_only_loopback_ports_are_published(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


def test_a_worker_has_longer_to_stop_than_it_drains() -> None:
    drain_s = config.load(COMPOSE / "simulated.toml", {}).file.worker.drain_s
    assert float(SERVICES["worker"]["stop_grace_period"].removesuffix("s")) >= drain_s + 10
    [pod] = [
        one["spec"]["template"]["spec"]
        for one in yaml.safe_load_all((COMPOSE / "kubernetes/worker.yaml").read_text())
        if one["kind"] == "Deployment"
    ]
    assert pod["terminationGracePeriodSeconds"] >= drain_s + 10


def test_no_secret_stands_in_an_environment() -> None:
    named = {name for service in SERVICES.values() for name in service.get("environment", {})}
    assert [name for name in named if re.search("PASSWORD|KEY|TOKEN", name) and not name.endswith("_FILE")] == []


@pytest.mark.parametrize("name", ["requirements.txt", "build-requirements.txt"])
def test_every_dependency_of_the_image_is_locked_by_hash_and_names_no_host(name: str) -> None:
    text = (COMPOSE / name).read_text()
    entries = re.split(r"^(?=[A-Za-z])", text, flags=re.MULTILINE)[1:]
    assert len(entries) > 3
    assert all("==" in entry and "--hash=sha256:" in entry for entry in entries)
    assert not re.search(r"index-url|find-links|file:|https?://", text)


def test_the_image_gets_what_pyproject_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked = set(re.findall(r"^([A-Za-z0-9._-]+)==", (COMPOSE / "requirements.txt").read_text(), re.MULTILINE))
    wanted = [*project["dependencies"], *project["optional-dependencies"]["worker"]]
    assert {re.split(r"[\[<>=~; ]", one)[0] for one in wanted} <= locked


def test_the_scaler_asks_how_old_each_lane_s_backlog_is() -> None:
    scaler = yaml.safe_load((COMPOSE / "kubernetes/keda.yaml").read_text())
    asked = [trigger["metadata"]["query"] for trigger in scaler["spec"]["triggers"]]
    assert sorted(asked) == sorted(f'max(turnout_fleet_backlog_age_seconds{{lane="{lane}"}})' for lane in Lane)
    assert scaler["spec"]["minReplicaCount"] == 1, "workers tell the age: without one, nobody does"


def test_every_locked_part_has_its_licence_listed() -> None:
    def names(pattern: str, file: str) -> set[str]:
        found = re.findall(pattern, (COMPOSE / file).read_text(), re.MULTILINE)
        return {re.sub(r"[-_.]+", "-", name).lower() for name in found}

    elsewhere = {"async-timeout", "httpx2-jsfetch", "tzdata"}  # locked for other systems than the image's
    missing = names(r"^([\w.-]+)==", "requirements.txt") - names(r"^ *([\w.-]+) ", "licenses.txt") - elsewhere
    assert missing == set()
