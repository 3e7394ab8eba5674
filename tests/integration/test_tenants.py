"""Real workers and a simulated provider: what one tenant floods is not what another waits for."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.chaos.fleet import one_provider
from tests.chaos.stand import Stand, standing

from turnout.ledger import run
from turnout.ledger.operations import TURNS
from turnout.request import RoutingConstraints

FLOOD, QUIET, SLOTS = 1000, 5, 10


def served_before(stand: Stand, tenant: str, others: str) -> list[int]:
    """Of each of a tenant's jobs: how many of the others' were served between its acceptance and its end."""
    ids = {whose: [f"{whose} {n}" for n in range(FLOOD if whose == others else QUIET)] for whose in (tenant, others)}
    facts = {whose: run(stand.client, [stand.ledger.facts(i) for i in ids[whose]]) for whose in ids}
    ends = [job.settled_at for job in facts[others] if job and job.settled_at]
    return [sum(job.accepted_at <= end <= (job.settled_at or 0) for end in ends) for job in facts[tenant] if job]


@pytest.mark.parametrize(
    ("slots", "concurrency"), [(SLOTS, 1000), (40, SLOTS)], ids=["of the workers", "of the provider"]
)
def test_a_tenants_flood_for_scarce_slots_does_not_hold_up_another(
    tmp_path: Path, slots: int, concurrency: int
) -> None:
    with standing(tmp_path, one_provider("sim-one", ttft_s=0.1, concurrency=concurrency), slots) as stand:
        loud, quiet = (RoutingConstraints(tenant=name) for name in ("loud", "quiet"))
        stand.submit([f"loud {n}" for n in range(FLOOD)], constraints=loud)
        stand.start_worker()
        stand.until(lambda: stand.settled() >= 50, 60)
        for n in range(QUIET):
            stand.submit([f"quiet {n}"], constraints=quiet)
            stand.until(lambda n=n: stand.outcomes([f"quiet {n}"]) == {"succeeded": 1}, 60)
        assert stand.settled() < FLOOD
        waited = served_before(stand, "quiet", "loud")
        # Those before it in the lane, those in flight, as many again while its own call was made, and what a busy
        # machine adds: far fewer than the flood.
        assert max(waited) <= TURNS + 5 * SLOTS, waited
        stand.fail("sim-one", kind="slow", factor=0.1)  # the flood has lasted long enough for a busy machine, too
        stand.until(lambda: stand.settled() == FLOOD + QUIET, 60)
