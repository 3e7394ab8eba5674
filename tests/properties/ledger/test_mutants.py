"""The seeded mistakes are real ones, and a sample of them is caught (all of them: see `mutants.py`)."""

from __future__ import annotations

import pytest
import redis
from tests.properties.ledger.bed import HAND_CLOCK, Mutant, MutatedLedger
from tests.properties.ledger.mutants import MUTANTS, caught_by

from turnout.ledger.keys import Keys


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_a_mutant_differs_and_compiles(flushed: redis.Redis, mutant: Mutant) -> None:
    script = MutatedLedger(mutant, Keys("t"), HAND_CLOCK).operation(mutant.script, keys=[], decode=bool).script
    assert flushed.script_load(script.source) == script.sha


@pytest.mark.parametrize("mutant", MUTANTS[::14], ids=str)
def test_a_mutant_is_caught(redis_url: str, mutant: Mutant) -> None:
    assert caught_by(redis_url, mutant)
