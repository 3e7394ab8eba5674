"""The fleet's state for a command that only looks on: read with blocking calls, and not too often."""

from __future__ import annotations

import time
from typing import Any

import redis
from redis.exceptions import NoPermissionError

from turnout.ledger import Ledger, Operation, run
from turnout_workers.routing.fleet import Circuit, Fleet, Health
from turnout_workers.routing.health import circuit
from turnout_workers.state.redis_store import state_operation

EVERY_S = 0.25
NO_WORKER = "none is running (turnout worker)"


class FleetView:
    """The shared state as of the last `look`. Empty if Redis lets this user see only its own jobs."""

    def __init__(self, client: redis.Redis, ledger: Ledger, fleet: Fleet) -> None:
        self._client = client
        self._read: list[Operation[Any]] = [state_operation(ledger.keys), ledger.workers()]
        self._fleet = fleet
        self._read_at = float("-inf")
        self.problems: dict[str, str] = {}
        """By provider: its worst problem, if it has one. The key `workers` is present if no worker runs."""
        self.disabled: dict[str, str] = {}
        """By endpoint without calls in flight: why it is disabled. Empty while no worker runs, because only a worker
        can find that it is mended."""

    def look(self) -> None:
        """Read the state, at most every quarter of a second."""
        if time.monotonic() - self._read_at < EVERY_S:
            return
        self._read_at = time.monotonic()
        try:
            state, workers = run(self._client, self._read)
        except NoPermissionError:
            return
        snapshot = self._fleet.snapshot(*state)
        worst: dict[str, tuple[float, str]] = {}
        self.disabled = {}
        for view in snapshot.views:
            if workers and view.health.disabled is not None and not view.load.in_flight:
                self.disabled[view.endpoint.id] = view.health.disabled
            if (one := health_problem(view.health, snapshot.at)) is not None:
                worst[view.endpoint.provider] = max(worst.get(view.endpoint.provider, one), one)
        self.problems = {provider: text for provider, (_, text) in worst.items()}
        if not workers:
            self.problems["workers"] = NO_WORKER


WELL, COOLS_DOWN = "well", "cools down"
HEALTH_WORDS = {
    Circuit.CLOSED: WELL,
    Circuit.OPEN: "out",
    Circuit.HALF_OPEN: "being probed",
    Circuit.RAMPING: "coming back",
    Circuit.DISABLED: "disabled",
    Circuit.ISOLATED: "isolated",
}
"""What people read about a circuit. To most of them, "closed" sounds like out of service."""


def health_word(health: Health, now: float) -> str:
    """The health of an endpoint in a word or two, for people."""
    state = circuit(health, now)
    out = state in (Circuit.OPEN, Circuit.DISABLED, Circuit.ISOLATED)
    return COOLS_DOWN if health.cooldown_until > now and not out else HEALTH_WORDS[state]


def health_problem(health: Health, now: float) -> tuple[float, str] | None:
    """How many seconds a problem of an endpoint will last, and what it is. None: it has none."""
    state, word = circuit(health, now), health_word(health, now)
    if state in (Circuit.DISABLED, Circuit.ISOLATED):
        return 1e9, f"{word}: {health.why}"
    if state is Circuit.OPEN:
        left = health.open_until - now
        return left, f"{word} for another {left:.0f} s: {health.ejection_reason}"
    if word == COOLS_DOWN:
        left = health.cooldown_until - now
        return left, f"{word} for another {left:.0f} s: {health.cooldown_reason}"
    return (0.0, word) if state is Circuit.HALF_OPEN else None
