"""`turnout run` with a Redis and workers that are there already, when that Redis goes and comes back."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.chaos.stand import standing

from turnout_workers.local import process

FLEET = """
output_tokens = 8
[providers.sim]
ttft_s = 0.2
models."llama-3.3-70b" = { input_usd_per_mtok = 1.0, output_usd_per_mtok = 3.0 }
"""


def test_a_run_stops_at_once_though_its_redis_is_away(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("A?\n")
    with standing(tmp_path, FLEET) as stand:
        command = [sys.executable, "-m", "turnout", "run", str(tmp_path / "prompts.txt"), "-o", "-", "--workers", "0"]
        log, here = tmp_path / "run.log", {"REDIS_URL": stand.redis.url, "TURNOUT_CONFIG": str(stand.config)}
        child = process.start(command, log, here)
        try:
            stand.until(lambda: stand.client.exists(stand.ledger.keys.pending("batch")), 60)
            stand.redis.kill()
            child.terminate()
            assert child.wait(20) == 3, log.read_text()
        finally:
            process.stop(child)
    assert "Stopped. What is done is kept" in log.read_text()


def test_a_run_takes_the_password_of_its_redis_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("A?\n")
    (tmp_path / "password").write_text("secret\n")
    with standing(tmp_path, FLEET) as stand:
        stand.client.config_set("requirepass", "secret")
        environ = {"REDIS_URL": stand.redis.url, "REDIS_PASSWORD_FILE": str(tmp_path / "password")}
        output = tmp_path / "results.jsonl"
        command = [sys.executable, "-m", "turnout", "run", str(tmp_path / "prompts.txt"), "-o", str(output)]
        child = process.start(command, tmp_path / "run.log", {**environ, "TURNOUT_CONFIG": str(stand.config)})
        try:
            assert child.wait(60) == 0, (tmp_path / "run.log").read_text()
        finally:
            process.stop(child)
    assert json.loads(output.read_text())["status"] == "succeeded"
