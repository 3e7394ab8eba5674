"""Dead letters: failed jobs are listed and run again, by error, batch or all; their first run stays in their story."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.chaos.fleet import one_provider
from tests.chaos.stand import Stand, standing

from turnout.cli import main
from turnout.ledger import NewJob, run
from turnout.request import InferenceRequest
from turnout_workers.commands import operate

FLEET = one_provider("sim-one")


OUT_OF_REACH = {"type": "object", "properties": {"n": {"type": "string", "pattern": "^never$"}}, "required": ["n"]}


def turnout(stand: Stand, *arguments: str) -> str:
    environ = stand.environ | {"COLUMNS": "200"}
    told = CliRunner().invoke(main, arguments, env=environ)
    assert told.exit_code == 0, told.output
    return told.output


def settled_as(stand: Stand, ids: list[str], state: str) -> None:
    stand.until(lambda: stand.outcomes(ids) == {state: len(ids)}, 30)


def test_failed_jobs_run_again_by_batch_by_error_and_all_and_keep_their_story(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operate, "PAGE", 3)  # so that four failed jobs take two looks
    with standing(tmp_path, FLEET, lease_s=30.0) as stand:
        stand.start_worker()
        stand.submit(["d"], response_format={"type": "json_schema", "json_schema": OUT_OF_REACH, "max_repairs": 0})
        settled_as(stand, ["d"], "failed")
        stand.fail("sim-one", kind="error", status=413)
        request = InferenceRequest(prompt="A?", max_output_tokens=8)
        jobs = [NewJob.of(job_id, request, batch=batch) for job_id, batch in [("a", "b1"), ("b", "b1"), ("c", None)]]
        run(stand.client, [stand.ledger.enqueue(job) for job in jobs])
        settled_as(stand, ["a", "b", "c", "d"], "failed")
        listed = [json.loads(line) for line in turnout(stand, "failed", "--json").splitlines()]
        assert [(one["batch"], one["lane"]) for one in listed if one["id"] == "a"] == [("b1", "standard")]
        assert {frozenset(one) for one in listed} == {frozenset(listed[0])}, "the same fields of each"
        assert {one["id"]: one["error"]["code"] for one in listed} == {
            "a": "context_length",
            "b": "context_length",
            "c": "context_length",
            "d": "off_schema",
        }
        rows = [line.split()[:3] for line in turnout(stand, "failed", "--count").splitlines()[2:] if line.strip()]
        assert rows[-2:] == [["context_length", "sim-one", "3"], ["off_schema", "sim-one", "1"]]
        assert "and more: --count" in turnout(stand, "failed", "--provider", "sim-one", "--limit", "3")
        assert turnout(stand, "failed", "--provider", "other") == "No job has failed like that.\n"
        assert "2 of 2" in turnout(stand, "replay", "--batch", "b1"), "while the provider still fails"
        settled_as(stand, ["a", "b"], "failed")
        stand.heal("sim-one")
        assert "2 of 2" in turnout(stand, "replay", "--batch", "b1")
        settled_as(stand, ["a", "b"], "succeeded")
        assert "1 of 1" in turnout(stand, "replay", "--error", "context_length")
        settled_as(stand, ["c"], "succeeded")
        assert "1 of 1" in turnout(stand, "replay", "--all")
        stand.until(lambda: len(replays(stand, "d")) == 1 and stand.outcomes(["d"]) == {"failed": 1}, 30)

        first, second = replays(stand, "a")
        for replayed in (first, second):
            (attempt,) = replayed["previous"]["attempts"]
            assert (attempt["provider"], attempt["failure"]) == ("sim-one", "context_length")
        (result,) = stand.results(["a"])
        assert result is not None
        assert [attempt.failure for attempt in result.attempts] == [None], "of the last run"
        assert stand.client.hgetall(stand.ledger.keys.counts)[b"succeeded"] == b"3"


def replays(stand: Stand, job_id: str) -> list[dict[str, dict[str, list[dict[str, str]]]]]:
    story = json.loads(turnout(stand, "explain", job_id, "--json"))["story"]
    return [event for event in story if event["event"] == "replayed"]


def test_a_worker_says_at_its_start_what_redis_lacks(tmp_path: Path) -> None:
    with standing(tmp_path, FLEET) as stand:
        stand.client.config_set("maxmemory-policy", "allkeys-lru")
        stand.start_worker()
        assert "Redis is not fit for production" in stand.workers[0].said
