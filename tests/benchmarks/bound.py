"""The lowest possible cost of a set of jobs, however routed: the yardstick of `routing_race.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

STEPS = 150
Slot = tuple[str, int]
"""An endpoint during one period of its rate limit."""


def least_cost(jobs: Sequence[Mapping[Slot, float]], room: Mapping[Slot, float]) -> float:
    """A lower bound on the cost of giving each job one of its slots, with no slot above its room.

    jobs: for each job, its cost in each slot that it may use. Whatever price per job a slot is given,
    Σ min(cost + price) − Σ room · price is a lower bound, by weak duality: a wrong price makes it loose, never
    false. Prices follow the overload, in ever smaller steps; the best bound counts.
    """
    rows = [list(job.items()) for job in jobs]
    price = dict.fromkeys(room, 0.0)
    scale = sum(max(job.values()) - min(job.values()) for job in jobs) / max(1, len(jobs))
    best = 0.0
    for step in range(STEPS):
        load, bound = dict.fromkeys(room, 0.0), -sum(room[slot] * price[slot] for slot in room)
        for row in rows:
            least, chosen = min((cost + price[slot], slot) for slot, cost in row)
            bound += least
            load[chosen] += 1
        best = max(best, bound)
        for slot, fits in room.items():
            overload = (load[slot] - fits) / max(fits, 1)
            price[slot] = max(0.0, price[slot] + scale * min(overload, 2.0) / (1 + step / 4))
    return best
