"""The seeded mistakes are real ones: each still fits its script, and makes another one that compiles."""

from __future__ import annotations

import pytest
import redis
from tests.properties.ledger.bed import HAND_CLOCK, Mutant, MutatedLedger
from tests.properties.ledger.mutants import MUTANTS

from turnout.ledger.keys import Keys


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_a_mutant_differs_and_compiles(flushed: redis.Redis, mutant: Mutant) -> None:
    script = MutatedLedger(mutant, Keys("t"), HAND_CLOCK)._call(mutant.script, [], []).script
    assert flushed.script_load(script.source) == script.sha
