"""What a dry run says before anything is sent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.unit.routing.fleets import endpoint

from turnout.cli import main
from turnout_workers.commands.dry_run import Forecast, Share, duration_s
from turnout_workers.routing.fleet import Fleet, Limits

DAY_S = 86_400


def took_s(limits: Limits, slots: int = 100, *shares: Share) -> float:
    """By jobs at one endpoint with these limits; or of shares at several, which have them together."""
    if not shares:
        alone = endpoint("a", limits=limits)
        return duration_s(Forecast(shares={alone.id: Share(600, 9000, 3000, work_s=1200.0)}), Fleet([alone]), slots)
    models = [endpoint("a", model=model, shared_limits=limits) for model in ("m", "n")]
    told = Forecast(shares=dict(zip([one.id for one in models], shares, strict=True)))
    return duration_s(told, Fleet(models), slots)


@pytest.mark.parametrize(
    ("limits", "expected_s"),
    [
        (Limits(), 12.0),
        (Limits(concurrency=4), 300.0),
        (Limits(requests_per_minute=60), 600.0),
        (Limits(tokens_per_minute=6000), 120.0),
        (Limits(input_tokens_per_minute=900), 600.0),
        (Limits(output_tokens_per_minute=1000), 180.0),
        (Limits(requests_per_day=600), 12.0),
        (Limits(requests_per_day=250), 2 * DAY_S),
        (Limits(tokens_per_day=6000), 1 * DAY_S),
    ],
)
def test_a_file_takes_as_long_as_its_scarcest_limit(limits: Limits, expected_s: float) -> None:
    assert took_s(limits) == expected_s


def test_what_models_have_together_counts_for_them_together() -> None:
    assert took_s(Limits(requests_per_minute=60), 100, Share(jobs=60), Share(jobs=120)) == 180.0


def test_a_file_without_a_good_line_takes_no_time() -> None:
    assert duration_s(Forecast(), Fleet([]), 100) == 0


def test_each_line_is_told_of_where_it_would_go_or_why_it_can_not(tmp_path: Path) -> None:
    lines = tmp_path / "lines.jsonl"
    asked = {"prompt": "A?", "model": "llama-3.3-70b", "max_output_tokens": 8}
    late = {**asked, "constraints": {"deadline": "2020-01-01T00:00:00Z"}}
    in_time = {**asked, "constraints": {"deadline": "2100-01-01T00:00:00Z"}}
    asking = [asked, in_time, {"prompt": 1}, {**asked, "model": "none-such"}, late]
    lines.write_text("\n".join(map(json.dumps, asking)))
    command = ["run", str(lines), "--dry-run", "--simulate"]
    told = CliRunner().invoke(main, [*command, "--json"])
    assert told.exit_code == 1, "some can't be run"
    summary = json.loads(told.stdout)
    assert (summary["lines"], summary["bad"]) == (5, {"invalid_request": 1, "refused": 1, "deadline": 1})
    [(endpoint_id, share)] = summary["endpoints"].items()
    assert (share["jobs"], share["output_tokens"]) == (2, 8), "half of what they may write is expected"
    assert 0 < summary["expected_usd"] < summary["most_usd"] < 0.001
    assert all(share[name] == summary[name] for name in ("expected_usd", "most_usd"))
    shown = CliRunner().invoke(main, command).stdout
    assert endpoint_id in shown
    assert "5 lines, 2 of them valid: about $0.00" in shown
    assert "line 4: no endpoint can serve this job" in shown
    assert "line 5: its deadline has passed" in shown
