"""Real workers take new keys and providers over without a restart, say which configuration they follow, and refuse
nothing for good while others follow another."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from tests.chaos.stand import Stand, standing

from turnout.ledger import run
from turnout_workers.commands import status as command
from turnout_workers.config import toml_lines

FLEET = """
[providers.sim-one]
api_key = ["new-key"]
models."llama-3.3-70b" = { input_usd_per_mtok = 1.0, output_usd_per_mtok = 3.0 }
"""
CONFIG = """
[router]
health_check_interval = 600
[providers.sim-one]
base_url = "{url}"
api_key_file = "{key}"
models = ["llama-3.3-70b"]
simulated = true
"""
NEWER = 'models."gpt-oss-120b" = { input_usd_per_mtok = 1.0, output_usd_per_mtok = 3.0 }\n'


def status(stand: Stand) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(CliRunner().invoke(command.status, ["--json"], env=stand.environ).stdout)
    return told


def test_a_rotated_key_is_used_without_a_restart_and_by_the_job_that_waited_for_it(tmp_path: Path) -> None:
    with standing(tmp_path, FLEET) as stand:
        key = tmp_path / "key"
        key.write_text("old-key")
        right = CONFIG.format(url=stand.provider_url("sim-one"), key=key)
        stand.config.write_text(right)
        stand.submit(["a"])
        worker = stand.start_worker()
        stand.until(lambda: status(stand)["endpoints"][0]["circuit"] == "disabled", 30)
        before = status(stand)
        assert list(before["workers"].values()) == [before["configuration"]]
        stand.config.write_text("this is wrong")
        stand.until(lambda: "turnout.toml:1: this is not TOML" in worker.said, 30)
        stand.config.write_text(right)
        key.write_text("new-key")
        stand.until(lambda: "(with other keys)" in worker.said, 30)
        stand.config.write_text(right + "weight = 2.0")
        stand.until(lambda: set(status(stand)["workers"].values()) == {status(stand)["configuration"]}, 30)
        assert status(stand)["configuration"] != before["configuration"]
        stand.until(lambda: stand.outcomes(["a"]) == {"succeeded": 1}, 30)
        assert worker.poll() is None
        assert "-key" not in worker.said


def test_jobs_for_a_model_that_only_some_workers_know_yet_wait_until_all_do(tmp_path: Path) -> None:
    with standing(tmp_path, FLEET + NEWER, lease_s=30.0) as stand:
        newer, older = stand.config, tmp_path / "older.toml"
        tables = tomllib.loads(newer.read_text())
        del tables["providers"]["sim-one"]["models"]["gpt-oss-120b"]
        older.write_text(toml_lines.dumps(tables))
        ids = [f"job-{n}" for n in range(16)]
        for file in (older, newer):
            stand.config = file
            stand.start_worker(concurrency=1)
        stand.submit(ids, model="gpt-oss-120b")
        stand.submit(["none"], model="unheard-of")
        stand.until(lambda: set(stand.outcomes([*ids, "none"])) <= {"succeeded", "delayed"}, 30)
        assert stand.outcomes(["none"]) == {"delayed": 1}
        older.write_text(newer.read_text())
        stand.until(lambda: "now using configuration" in stand.workers[0].said, 30)
        stand.until(lambda: len({*run(stand.client, [stand.ledger.workers()])[0].values()}) == 1, 30)
        stand.until(lambda: stand.settled() == len(ids) + 1, 30)
        assert stand.outcomes(ids) == {"succeeded": len(ids)}
        (refused,) = stand.results(["none"])
        assert refused is not None
        assert refused.error is not None
        assert refused.error.code == "refused"
