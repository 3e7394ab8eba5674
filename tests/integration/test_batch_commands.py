"""`turnout batch`: handed over, fed by workers, and looked at, paused, cancelled and fetched by its own commands."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.chaos.fleet import one_provider
from tests.chaos.stand import Stand, standing

from turnout.batch.chunk import chunk_jobs
from turnout.batch.detached import Batches
from turnout.cli import main
from turnout.ledger import Keyring, run
from turnout.request import Lane

FLEET = one_provider(ttft_s=0.05)


@pytest.fixture
def stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stand]:
    with standing(tmp_path, FLEET, concurrency=50) as stand:
        for name, value in {**stand.environ, "COLUMNS": "250"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(tmp_path)
        yield stand


def turnout(*command: str) -> Result:
    return CliRunner().invoke(main, ["batch", *command], catch_exceptions=False)


def submitted(folder: Path, lines: list[str], *options: str) -> str:
    file = folder / "my[bold]prompts.jsonl"  # no markup for a terminal
    file.write_text("\n".join(lines) + "\n")
    told = turnout("submit", str(file), *options)
    assert told.exit_code == 0, told.output
    return told.stdout.strip().splitlines()[-1]


def prompts(count: int) -> list[str]:
    return [json.dumps({"prompt": f"Question {n}?", "id": f"q{n}", "max_output_tokens": 8}) for n in range(count)]


def counts(id: str) -> dict[str, int]:
    told: dict[str, int] = json.loads(turnout("show", id, "--json").stdout)["counts"]
    return told


def test_every_line_of_a_batch_has_its_result_in_order_though_a_feeder_dies(stand: Stand, tmp_path: Path) -> None:
    lines = prompts(900)
    lines[3] = '{"prompt": 5}'
    id = submitted(tmp_path, lines, "--completion-window", "24h")
    doomed = stand.start_worker(wait=False, concurrency=2)  # which would take long for them all
    stand.until(lambda: len(stand.oracle()["jobs"]) > 0)
    stand.kill_worker(doomed)
    early = turnout("results", id, "-o", "early.jsonl")
    assert early.exit_code == 3
    listed = turnout("list").output
    assert id in listed
    assert "my[bold]prompts.jsonl" in listed
    stand.start_worker()
    assert turnout("watch", id).exit_code == 1  # a bad line has no answer
    fetched = turnout("results", id, "-o", "out.jsonl")
    assert fetched.exit_code == 1
    results = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [one["id"] for one in results] == [f"q{n}" if n != 3 else 4 for n in range(900)]
    assert [one["status"] for one in results] == ["failed" if n == 3 else "succeeded" for n in range(900)]
    assert "line 4" in results[3]["error"]["message"]
    assert counts(id) == {"succeeded": 899, "invalid": 1}
    answered = [job["answered"] for job in stand.oracle()["jobs"].values()]
    assert len(answered) == 899
    assert stand.client.llen(stand.ledger.keys.batch_input(id)) == 0
    assert stand.client.ttl(stand.ledger.keys.job(next(iter(stand.oracle()["jobs"])))) > 6 * 86_400


def test_a_paused_batch_is_fed_on_when_it_is_resumed_and_a_cancelled_one_never(stand: Stand, tmp_path: Path) -> None:
    id = submitted(tmp_path, prompts(30))
    assert turnout("pause", id).output.startswith(f"{id}: paused; 30 lines: 30 waiting;")
    assert "30 waiting; $0 spent, $0 unsure; no worker is running" in turnout("show", id).output
    stand.start_worker()
    # A worker that does housekeeping, and would have fed it: another batch goes through meanwhile.
    other = submitted(tmp_path, prompts(5))
    assert turnout("watch", other).exit_code == 0
    assert counts(id) == {"waiting": 30}
    turnout("resume", id)
    assert turnout("watch", id).exit_code == 0

    stand.fail("sim", kind="slow", factor=20.0)  # so that it takes some twenty seconds
    long = submitted(tmp_path, prompts(900))
    stand.until(lambda: "waiting" not in counts(long))
    turnout("pause", long)
    stand.heal("sim")
    keys = stand.ledger.keys
    stand.until(lambda: not stand.client.exists(keys.job_leases, *Lane))
    called = len(stand.oracle()["jobs"])
    assert called < 900, "jobs that were queued begin no call"
    assert turnout("watch", submitted(tmp_path, prompts(3))).exit_code == 0, "other jobs go on"
    assert len(stand.oracle()["jobs"]) == called + 3
    turnout("resume", long)
    assert turnout("watch", long).exit_code == 0
    assert len(stand.oracle()["jobs"]) == 938

    last = submitted(tmp_path, prompts(30))
    turnout("pause", last)
    turnout("cancel", last)
    assert turnout("resume", last).exit_code == 2
    output = tmp_path / "out.jsonl"
    turnout("results", last, "-o", str(output))
    ended = [json.loads(line)["status"] for line in output.read_text().splitlines()]
    assert set(ended) <= {"cancelled", "succeeded"}
    assert len(ended) == 30
    assert "there is no batch nobody" in turnout("show", "nobody").output


def test_lines_that_found_no_answer_run_again(stand: Stand, tmp_path: Path) -> None:
    stand.fail("sim", kind="down")
    stand.start_worker()
    id = submitted(tmp_path, prompts(4), "--deadline", "2s")
    assert turnout("watch", id).exit_code == 1
    assert counts(id) == {"expired": 4}
    stand.heal("sim")
    assert "4 jobs run again" in turnout("retry-failed", id).output
    assert turnout("watch", id).exit_code == 0


def test_a_ceiling_holds_for_the_batch_and_the_rest_expires_and_runs_under_a_higher_one(
    stand: Stand, tmp_path: Path
) -> None:
    stand.start_worker()
    id = submitted(tmp_path, prompts(40), "--max-cost", "0.0003")
    assert turnout("watch", id).exit_code == 1
    told = json.loads(turnout("show", id, "--json").stdout)
    assert told["spent_usd"] <= told["max_cost_usd"] == 0.0003
    [listed] = [one for line in turnout("list", "--json").stdout.splitlines() if (one := json.loads(line))["id"] == id]
    assert listed.items() <= told.items()
    assert told["counts"]["expired"] > 0
    assert sum(told["counts"].values()) == 40
    assert f"{told['counts']['expired']} jobs run again" in turnout("retry-failed", id, "--max-cost", "1").output
    assert turnout("watch", id).exit_code == 0
    assert "of $1.00 spent" in turnout("show", id).output


def test_identical_lines_are_asked_once_and_late_ones_never(stand: Stand, tmp_path: Path) -> None:
    late = {"prompt": "late", "constraints": {"deadline": "2020-01-01T00:00:00Z"}, "id": "late"}
    lines = [json.dumps({"prompt": f"Question {n % 2}?", "id": n}) for n in range(400)]
    id = submitted(tmp_path, [*lines, json.dumps(late)], "--dedupe")
    assert "cancel it first" in turnout("delete", id).output
    stand.start_worker()
    assert turnout("watch", id).exit_code == 1
    assert counts(id) == {"succeeded": 2, "shared": 398, "expired": 1}
    assert turnout("results", id, "-o", "out.jsonl", "--errors", "bad.jsonl").exit_code == 1
    told = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["id"] for line in told] == list(range(400))
    assert sum(line["cost_usd"] > 0 for line in told) == 2
    (never,) = (json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines())
    assert (never["id"], never["status"]) == ("late", "expired")
    assert len(stand.oracle()["jobs"]) == 2
    assert turnout("delete", id).exit_code == 0
    assert "There are no batches" in turnout("list").output
    assert not list(stand.client.scan_iter("*job:*"))


def test_a_file_that_ends_half_way_leaves_no_batch(stand: Stand, tmp_path: Path) -> None:
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress("\n".join(prompts(900)).encode())[:-20])
    told = turnout("submit", "cut.jsonl.gz")
    assert told.exit_code == 2
    assert "can't read cut.jsonl.gz" in told.output
    assert "There are no batches" in turnout("list").output


def test_a_chunk_that_is_fed_twice_is_noted_once(stand: Stand, tmp_path: Path) -> None:
    id = submitted(tmp_path, prompts(3))
    chunk = stand.client.lindex(stand.ledger.keys.batch_input(id), 0)
    assert isinstance(chunk, bytes)
    jobs = chunk_jobs(chunk, id, Keyring())
    assert run(stand.client, [stand.ledger.finish_chunk(id, 0, len(jobs))]) == [True]
    assert run(stand.client, [stand.ledger.finish_chunk(id, 0, len(jobs))]) == [False]
    assert stand.client.hget(stand.ledger.keys.batch(id), "fed") == b"3"
    assert time.time() - Batches(stand.client, stand.ledger).record(id).submitted_at < 60
