"""A worker that may hedge asks a second provider when an interactive call is slow, and tells what that may cost."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.stand import Stand, standing

from turnout.request import Lane, RoutingConstraints
from turnout.result import JobResult

FLEET = """
output_tokens = 8
[providers.sim-slow]
ttft_s = 0.05
models."llama-3.3-70b" = { input_usd_per_mtok = 0.1, output_usd_per_mtok = 0.3 }
[providers.sim-spare]
ttft_s = 0.05
models."llama-3.3-70b" = { input_usd_per_mtok = 0.2, output_usd_per_mtok = 0.4 }
"""


def answered(stand: Stand, job_id: str, lane: Lane) -> JobResult:
    stand.submit([job_id], constraints=RoutingConstraints(lane=lane))
    stand.until(lambda: stand.outcomes([job_id]) == {"succeeded": 1})
    (result,) = stand.results([job_id])
    assert result is not None
    assert result.succeeded
    return result


def test_a_slow_interactive_call_is_doubled_and_the_loser_is_unsure_money(tmp_path: Path) -> None:
    with standing(tmp_path, FLEET, concurrency=4) as stand:
        stand.config.write_text(stand.config.read_text().replace("[router]\n", "[router]\nhedge = true\n"))
        stand.fail("sim-slow", kind="slow", factor=100.0)
        stand.start_worker()
        result = answered(stand, "urgent", Lane.INTERACTIVE)
        assert [attempt.provider for attempt in result.attempts] == ["sim-slow", "sim-spare"]
        stopped, answer = result.attempts
        assert stopped.failure == "cancelled"
        assert stopped.unsure_microusd == result.unsure_microusd > 0
        assert answer.succeeded
        assert result.failovers == 0
        stand.until(lambda: stand.client.zcard(stand.ledger.keys.call_lease_ends) == 0)
        assert stand.oracle()["jobs"]["urgent"]["calls"] == 2
        money = stand.money()
        assert money["total|unsure"] == result.unsure_microusd
        assert money["total|spent"] == result.cost_microusd


def test_without_being_asked_for_no_call_is_doubled(tmp_path: Path) -> None:
    with standing(tmp_path, FLEET, concurrency=4) as stand:
        stand.fail("sim-slow", kind="slow", factor=40.0)
        stand.start_worker()
        result = answered(stand, "urgent", Lane.INTERACTIVE)
        assert [attempt.provider for attempt in result.attempts] == ["sim-slow"]
