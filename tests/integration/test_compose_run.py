"""compose.yaml, run without a container engine: its commands, environment, files and health checks as plain processes.

Only places change: what a container would mount is taken from where it lies, a service's name is loopback, and a
fixed port a free one. `valkey-cli`, which the image has and the wheel's server has not, is redis-py by that name.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from tests import redis_server

from turnout import Client
from turnout_workers.local import process

SOURCE = Path(__file__).parents[2] / "compose"
CLI = """#!{python}
import os, sys, redis
user, command = sys.argv[sys.argv.index("--user") + 1], sys.argv[-1]
client = redis.Redis(port={port}, username=user, password=os.environ["REDISCLI_AUTH"])
print("PONG" if client.execute_command(command) else "")
"""


class Here:
    """The services of compose.yaml on this machine."""

    def __init__(self, folder: Path) -> None:
        self.compose = folder / "compose"
        shutil.copytree(SOURCE, self.compose)
        subprocess.run(["sh", "secrets.sh"], cwd=self.compose, check=True)
        self.services: dict[str, dict[str, Any]] = yaml.safe_load((self.compose / "compose.yaml").read_text())[
            "services"
        ]
        self.bound = {name: redis_server.bind_free_port() for name in ("redis", "simulator", "metrics", "flower")}
        self.ports = {name: str(bound.getsockname()[1]) for name, bound in self.bound.items()}
        tools = folder / "bin"
        tools.mkdir()
        (tools / "valkey-server").symlink_to(redis_server.BINARY)
        (tools / "valkey-cli").write_text(CLI.format(python=sys.executable, port=self.ports["redis"]))
        (tools / "valkey-cli").chmod(0o755)
        self.path = f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.data = folder / "data"
        self.set = {"TURNOUT_TOML": "simulated.toml", "TURNOUT_CONCURRENCY": "20"}
        self.set["TURNOUT_PAYLOAD_KEYS_FILE"] = "/run/providers/payload_keys"
        self.payload_keys = self.compose / "secrets/providers/payload_keys"
        self.payload_keys.write_text(f"2026a:{base64.b64encode(os.urandom(32)).decode()}\n")
        for file in (*self.compose.glob("config/*.toml"), *self.compose.glob("redis/*.conf")):
            file.write_text(self.placed(file.read_text(), {}))

    def placed(self, text: str, service: dict[str, Any]) -> str:
        """Text of compose.yaml as it holds on this machine."""
        text = re.sub(r"\$\{(\w+)(?::-([^}]*))?[^}]*\}", lambda m: self.set.get(m[1], m[2] or ""), text)
        for mount in service.get("volumes", []):
            source, target = self.placed(mount, {}).removesuffix(":ro").split(":")
            place = self.compose / source if source.startswith(".") else self.data / source
            if not source.startswith("."):
                place.mkdir(parents=True, exist_ok=True)
            text = text.replace(target, str(place))
        for old, new in {
            "$$": "$",
            "/run/secrets": str(self.compose / "secrets"),
            "/tmp/alive": str(self.data / "alive"),
            "redis:6379": f"127.0.0.1:{self.ports['redis']}",
            "port 6379": f"port {self.ports['redis']}",
            "bind * -::*": "bind 127.0.0.1",
            "simulator:8787": f"127.0.0.1:{self.ports['simulator']}",
            "8787": self.ports["simulator"],
            "9464": self.ports["metrics"],
            "0.0.0.0": "127.0.0.1",
        }.items():
            text = text.replace(old, new) if not text.startswith(str(self.compose)) or old == "$$" else text
        return text

    @contextmanager
    def running(self, name: str) -> Iterator[subprocess.Popen[bytes]]:
        """A service, from its command to a health check that passes."""
        service = self.services[name]
        environ = {key: self.placed(str(value), service) for key, value in service.get("environment", {}).items()}
        environ |= {"PATH": self.path, "TMPDIR": str(self.data)}
        self.data.mkdir(exist_ok=True)
        command = [self.placed(part, service) for part in service["command"]]
        log = self.data / f"{name}.log"
        child = process.start(command, log, environ)
        try:
            process.wait_until(lambda: self.healthy(service, environ), child, log, 60)
            yield child
        finally:
            process.stop(child, grace_s=float(service.get("stop_grace_period", "10s").removesuffix("s")))

    def healthy(self, service: dict[str, Any], environ: dict[str, str]) -> bool:
        kind, *test = (self.placed(part, service) for part in service["healthcheck"]["test"])
        command = ["sh", "-c", *test] if kind == "CMD-SHELL" else test
        return subprocess.run(command, env={**os.environ, **environ}, capture_output=True).returncode == 0

    def client(self, role: str) -> redis.Redis:
        password = (self.compose / "secrets" / f"redis_{role}").read_text()
        return redis.Redis(port=int(self.ports["redis"]), username=role, password=password)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    here = Here(tmp_path_factory.mktemp("fleet"))
    with ExitStack() as stack:
        for name in ("redis", "simulator", "worker"):
            stack.enter_context(here.running(name))
        yield here
    for bound in here.bound.values():
        bound.close()


def test_a_producers_job_goes_through_the_services_of_compose_yaml(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    environ = here.services["worker"]["environment"]
    monkeypatch.setenv("REDIS_URL", here.placed(environ["REDIS_URL"], {}).replace("worker@", "producer@"))
    monkeypatch.setenv("REDIS_PASSWORD_FILE", str(here.compose / "secrets/redis_producer"))
    monkeypatch.setenv("TURNOUT_PAYLOAD_KEYS_FILE", str(here.payload_keys))
    with Client() as client:
        job = client.submit("Say yes.", model="llama-3.3-70b")
        assert job.wait(timeout=60).text
        assert job.status() == "succeeded"
    assert here.client("worker").hget(f"{{turnout}}:job:{job.id}", "seal").startswith(b"2026a#")


def test_an_operator_looks_from_within_a_worker(here: Here) -> None:
    """As by `docker compose exec worker turnout …`."""
    service = here.services["worker"]
    environ = {**os.environ, "PATH": here.path, "COLUMNS": "100"}
    environ |= {name: here.placed(str(value), service) for name, value in service["environment"].items()}
    told = subprocess.run(["turnout", "status", "--once"], env=environ, capture_output=True, text=True)
    assert "sim-thrifty/llama-3.3-70b" in told.stdout, told.stderr
    told = subprocess.run(["turnout", "submit", "--wait", "Say yes."], env=environ, capture_output=True, text=True)
    assert told.stdout.startswith("[simulated by"), told.stderr
    told = subprocess.run(["turnout", "doctor"], env=environ, capture_output=True, text=True)
    assert [line for line in told.stdout.splitlines() if line.startswith("DO")] == [
        "DO   some providers are simulated: their answers are made up"
    ]


def test_the_server_refused_nothing_to_the_workers_role(here: Here) -> None:
    denied = here.client("admin").execute_command("ACL", "LOG")
    told = [dict(zip(entry[::2], entry[1::2], strict=True)) if isinstance(entry, list) else entry for entry in denied]
    assert [(entry[b"username"], entry[b"object"]) for entry in told] == []


def test_the_handbooks_way_to_be_admin_leads_to_the_server(here: Here) -> None:
    [shown] = re.findall(r"^  sh -c '(.+)'$", (SOURCE.parent / "docs/redis.md").read_text(), re.MULTILINE)
    command = ["sh", "-c", here.placed(f"{shown} PING", {})]
    told = subprocess.run(command, env={**os.environ, "PATH": here.path}, capture_output=True, text=True)
    assert told.stdout == "PONG\n", told.stderr


def test_flower_answers_with_the_role_and_configuration_of_compose_yaml(here: Here) -> None:
    service = here.services["flower"]
    for part in ("command", "healthcheck"):
        service[part] = yaml.safe_load(yaml.safe_dump(service[part]).replace("5555", here.ports["flower"]))
    with here.running("flower"):
        pass
    test_the_server_refused_nothing_to_the_workers_role(here)
