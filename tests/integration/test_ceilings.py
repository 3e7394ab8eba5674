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


def test_a_batch_ends_at_its_ceiling_and_never_passes_it(tmp_path: Path) -> None:
    with standing(tmp_path, FLEET) as stand:
        ids = [f"b{n}" for n in range(60)]
        run(stand.client, [stand.ledger.set_ceiling("night", 1500)])
        run(stand.client, [stand.ledger.enqueue(NewJob.of(i, ASKED, batch="night")) for i in ids])
        stand.start_worker()
        stand.until(lambda: stand.settled() == len(ids), 30)
        outcomes = stand.outcomes(ids)
        assert set(outcomes) == {"succeeded", "expired"}
        money = stand.money()
        assert money["batch:night|spent"] <= 1500
        assert money["batch:night|spent"] == stand.oracle()["billed_microusd"]
        (late,) = {r.error.code for r in stand.results(ids) if r and r.error}
        assert late == "cost_ceiling"


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
