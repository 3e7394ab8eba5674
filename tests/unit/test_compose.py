"""The files in compose/ against the schemas and linters of those who will read them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from tests.receiver import SECRET
from tests.tools import program

from turnout.request import Lane
from turnout.result import JobStatus
from turnout_workers import config
from turnout_workers.monitoring.metrics import Metrics, Recovery
from turnout_workers.routing.fleet import Circuit
from turnout_workers.state.store import Account

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
        ["promtool", "check", "config", "--syntax-only", "compose/prometheus/prometheus.yml"],
        ["promtool", "test", "rules", "compose/prometheus/alerts.test.yml"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_a_checker_accepts(command: list[str]) -> None:
    ours = Path(sys.executable).with_name(command[0])
    checker = str(ours) if ours.exists() else program(command[0], "prometheus")
    told = subprocess.run([checker, *command[1:]], cwd=ROOT, capture_output=True)
    assert told.returncode == 0, (told.stdout + told.stderr).decode()


ALERTS = yaml.safe_load((COMPOSE / "prometheus/alerts.yml").read_text())["groups"][0]["rules"]


def test_each_alert_is_tried_and_the_handbook_says_what_to_do() -> None:
    tried = yaml.safe_load((COMPOSE / "prometheus/alerts.test.yml").read_text())["tests"]
    fired = {one["alertname"] for test in tried for one in test["alert_rule_test"] if one.get("exp_alerts")}
    quiet = {one["alertname"] for test in tried for one in test["alert_rule_test"] if not one.get("exp_alerts")}
    handbook = (ROOT / "docs/operations.md").read_text().partition("## Incidents")[2]
    for name in (rule["alert"] for rule in ALERTS):
        assert name in fired & quiet
        assert f"`{name}`" in handbook


def test_counters_whose_increase_is_watched_begin_at_nothing() -> None:
    """`increase` sees nothing of a series that begins with the first event."""
    watched = re.findall(r"increase\((\w+)(?:{(\w+)=\"(\w+)\"})?\[", " ".join(rule["expr"] for rule in ALERTS))
    assert len(watched) >= 3
    registry = Metrics().registry
    for name, label, value in watched:
        assert registry.get_sample_value(name, {label: value} if label else {}) == 0, (name, value)


def test_alerts_and_dashboard_ask_for_values_that_labels_can_have() -> None:
    known = {"lane": set(Lane), "state": set(Circuit), "how": set(get_args(Recovery))}
    known["kind"] = {column.name for column in fields(Account)}
    known |= {"job": {"turnout"}, "outcome": set(JobStatus)}
    asked = [rule["expr"] for rule in ALERTS]
    board = json.loads((COMPOSE / "grafana/dashboards/turnout.json").read_text())
    asked += [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    for label, values in re.findall(r'(\w+)=~?"([^"]+)"', " ".join(asked)):
        assert set(values.split("|")) <= known[label], label


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_is_hardened(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert not re.search(r":latest$", service["image"].replace("${TURNOUT_VERSION:-latest}", "0"))


def test_a_volume_of_our_image_is_mounted_where_its_user_may_write() -> None:
    """A folder that the image lacks would be made by the engine, for root."""
    ours = [service for service in SERVICES.values() if service["image"].startswith("turnout:")]
    mounts = [mount.split(":") for service in ours for mount in service.get("volumes", [])]
    [made] = re.findall(r"install -d -o turnout -g turnout (.+)", (COMPOSE / "Dockerfile").read_text())
    assert {place for source, place, *_ in mounts if not source.startswith((".", "$"))} == set(made.split())


def test_what_a_worker_follows_is_mounted_by_its_folder() -> None:
    """A file mounted by itself stays the old one when an editor puts a new one in its place."""
    worker = SERVICES["worker"]
    folders = [mount.split(":")[1] for mount in worker["volumes"] if not Path(mount.split(":")[0]).suffix]
    assert any(worker["environment"]["TURNOUT_CONFIG"].startswith(f"{folder}/") for folder in folders)
    assert "/run/providers" in folders


def test_the_builder_is_sent_what_the_image_copies_and_the_licence_is_among_it() -> None:
    copied = re.findall(r"^COPY (?!--)(.+) \S+$", (COMPOSE / "Dockerfile").read_text(), re.MULTILINE)
    names = {name for line in copied for name in line.split()}
    assert "LICENSE" in names
    assert {f"!{name}" for name in names} <= set((ROOT / ".dockerignore").read_text().split())


@pytest.mark.parametrize("file", ["compose.yaml", "kubernetes/worker.yaml", "Dockerfile"])
def test_each_variable_that_a_worker_is_given_is_read_by_it(file: str) -> None:
    source = "".join(path.read_text() for part in ("tasks", "workers") for path in (ROOT / part).rglob("*.py"))
    given = set(re.findall(r"\b(TURNOUT_\w+)(?:: |=|,)", (COMPOSE / file).read_text()))
    assert given
    assert [name for name in sorted(given) if f'"{name}"' not in source] == []


@pytest.mark.parametrize("name", SERVICES)
def test_only_loopback_ports_are_published(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


def test_the_handbook_tells_each_published_address() -> None:
    published = [port.rpartition(":")[0] for service in SERVICES.values() for port in service.get("ports", [])]
    told = re.findall(r"<http://([\d.:]+)>", (ROOT / "docs/operations.md").read_text())
    assert sorted(told) == sorted(published)


def test_a_worker_has_longer_to_stop_than_it_takes_with_a_silent_redis() -> None:
    limit_s = config.load(config.Source(str(COMPOSE / "config/simulated.toml")), {}).config.worker.drain_s + 40
    assert float(SERVICES["worker"]["stop_grace_period"].removesuffix("s")) >= limit_s
    [pod] = [
        one["spec"]["template"]["spec"]
        for one in yaml.safe_load_all((COMPOSE / "kubernetes/worker.yaml").read_text())
        if one["kind"] == "Deployment"
    ]
    assert pod["terminationGracePeriodSeconds"] >= limit_s


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("compose.yaml", r"# (\w+): (/run/providers/\w+)"),
        ("kubernetes/worker.yaml", r"# - {name: (\w+), value: (/run/providers/\w+)}"),
    ],
)
def test_a_webhooks_secret_comes_in_as_a_file_beside_the_providers_keys(tmp_path: Path, file: str, line: str) -> None:
    text = (COMPOSE / file).read_text()
    assert "/run/providers:ro" in text or "mountPath: /run/providers" in text
    [(variable, place)] = re.findall(line, text)
    [webhook] = re.findall(r"^(\[webhooks.*?)^```", (ROOT / "docs/web-apps.md").read_text(), re.MULTILINE | re.DOTALL)
    (secret := tmp_path / Path(place).name).write_text(SECRET)
    settings = config.load(config.Source("turnout.toml", webhook), {variable: str(secret)})
    assert settings.secrets["app"].reveal() == SECRET


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


def test_every_locked_part_has_a_licence_listed_that_is_known_and_permissive() -> None:
    def parts(pattern: str, file: str) -> dict[str, tuple[str, ...]]:
        found = re.findall(pattern, (COMPOSE / file).read_text(), re.MULTILINE)
        return {re.sub(r"[-_.]+", "-", name).lower(): rest for name, *rest in found}

    elsewhere = {"async-timeout", "httpx2-jsfetch", "tzdata"}  # locked for other systems than the image's
    locked = parts(r"^([\w.-]+)==([\w.]+)", "requirements.txt")
    listed = parts(r"^ *([\w.-]+) +([\d][\w.]*) +(.+)$", "licenses.txt")
    assert {name: version for name, [version] in locked.items() if name not in elsewhere} == {
        name: version for name, (version, _) in listed.items() if name in locked
    }
    permissive = re.compile("MIT|BSD|Apache|PSF|Python Software Foundation|MPL 2.0|MPL-2.0|ISC|Unlicense")
    assert [name for name, (_, licence) in listed.items() if not permissive.search(licence)] == []
    assert [name for name, (_, licence) in listed.items() if re.search(r"\bA?GPL", licence)] == []
