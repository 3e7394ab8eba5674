"""What a command that looks on sees of the fleet."""

from __future__ import annotations

import pytest
import redis

from turnout.ledger import Keys, Ledger, run
from turnout_workers.routing.fleet import Endpoint, Fleet
from turnout_workers.state import fleet_view
from turnout_workers.state.redis import mark_call

ONE = Endpoint("groq", "llama", "llama-3.3")


def test_a_refused_key_counts_while_a_worker_is_there_to_find_it_mended(
    flushed: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_view, "EVERY_S", 0.0)
    ledger = Ledger(Keys())
    view = fleet_view.FleetView(flushed, ledger, Fleet([ONE]))
    run(flushed, [mark_call(ledger.keys, "disabled", [ONE.id], "unauthorized: no")])
    view.look()
    assert view.troubles == {"groq": "disabled: unauthorized: no", "workers": fleet_view.NO_WORKER}
    assert not view.disabled
    run(flushed, [ledger.alive("w", "v1", 1, 30.0, 60.0)])
    view.look()
    assert view.troubles == {"groq": "disabled: unauthorized: no"}
    assert view.disabled == {ONE.id: "unauthorized: no"}
