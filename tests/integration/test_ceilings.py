"""Cost ceilings end to end: a job's and a batch's end what would pass them, a day's lets it wait."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.stand import standing

from turnout.ledger import NewJob, run
from turnout.request import InferenceRequest, RoutingConstraints

FLEET = """
output_tokens = 8
[providers.sim-one]
ttft_s = 0.2
models."llama-3.3-70b" = { input_usd_per_mtok = 1.0, output_usd_per_mtok = 3.0 }
"""
ASKED = InferenceRequest(prompt="How much?", max_output_tokens=100)


def test_a_job_that_can_not_be_paid_for_is_refused_and_one_above_a_days_ceiling_waits(tmp_path: Path) -> None:
    with standing(tmp_path, FLEET) as stand:
        stand.config.write_text(stand.config.read_text() + "\n[ceilings.total]\nper_day_usd = 0.0001\n")
        poor = ASKED.model_copy(update={"constraints": RoutingConstraints(max_cost_usd=0.00001)})
        jobs = [NewJob.of("poor", poor), NewJob.of("waits", ASKED)]
        run(stand.client, [stand.ledger.enqueue(job) for job in jobs])
        stand.start_worker()
        stand.until(lambda: stand.outcomes(["poor", "waits"]) == {"failed": 1, "delayed": 1}, 30)
        (story,) = run(stand.client, [stand.ledger.story("waits")])
        (why,) = {why.partition("@")[0] for why in story[-1]["decision"]["no_room"].values()}
        assert why == "ceiling total"
        assert stand.oracle()["billed_microusd"] == 0
