"""What a command that looks on sees of the fleet."""

from __future__ import annotations

import pytest
import redis

from turnout.ledger import Keys, Ledger, run
from turnout_workers.commands.status import _notes
from turnout_workers.monitoring.overview import endpoints
from turnout_workers.routing.fleet import Endpoint, Fleet, Health, Load, Observed
from turnout_workers.state import fleet_view
from turnout_workers.state.redis_store import mark_operation

ONE = Endpoint("groq", "llama", "llama-3.3")


def test_a_refused_key_counts_while_a_worker_is_there_to_find_it_mended(
    flushed: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_view, "EVERY_S", 0.0)
    ledger = Ledger(Keys())
    view = fleet_view.FleetView(flushed, ledger, Fleet([ONE]))
    run(flushed, [mark_operation(ledger.keys, "disabled", [ONE.id], "unauthorized: no")])
    view.look()
    assert view.problems == {"groq": "disabled: unauthorized: no", "workers": fleet_view.NO_WORKER}
    assert not view.disabled
    run(flushed, [ledger.alive("w", "v1", 1, 30.0, 60.0)])
    view.look()
    assert view.problems == {"groq": "disabled: unauthorized: no"}
    assert view.disabled == {ONE.id: "unauthorized: no"}


NOW = 1000.0
PASSED = Health(open_until=NOW - 1, recovered_at=NOW - 99)


@pytest.mark.parametrize(
    ("health", "said"),
    [
        (Health(), "well"),
        (Health(cooldown_until=NOW + 9, cooldown_reason="429"), "cools down"),
        (PASSED._replace(open_until=NOW + 9, cooldown_until=NOW + 99), "out"),
        (Health(open_until=NOW - 1), "being probed"),
        (PASSED._replace(recovered_at=NOW - 0.5), "coming back"),
        (Health(disabled="no credit", cooldown_until=NOW + 9), "disabled"),
        (Health(isolated="by an operator"), "isolated"),
    ],
)
def test_an_endpoints_health_is_told_in_the_same_words_wherever_people_look(health: Health, said: str) -> None:
    [row] = endpoints(Fleet([ONE]).snapshot(NOW, {ONE.id: Observed(health)}))
    assert row["health"] == said
    wrong = fleet_view.health_problem(health, NOW)
    assert wrong is None if said in ("well", "coming back") else wrong[1].startswith(said)


@pytest.mark.parametrize(
    ("load", "free"), [(Load(), 1), (Load(ready_at=NOW + 9), 0), (Load(free=0.5, ready_at=NOW - 1), 0.5)]
)
def test_an_endpoint_of_whose_limit_nothing_remains_as_its_provider_says_has_no_room(load: Load, free: float) -> None:
    [row] = endpoints(Fleet([ONE]).snapshot(NOW, {ONE.id: Observed(load=load)}))
    assert row["free"] == free


def test_status_names_the_limit_that_is_full_and_until_when() -> None:
    load = Load(ready_at=NOW + 9, full="input_tokens_per_minute")
    rows = endpoints(Fleet([ONE]).snapshot(NOW, {ONE.id: Observed(load=load)}))
    assert f"{ONE.id}: input_tokens_per_minute has room again in 9 s" in list(_notes(rows))
