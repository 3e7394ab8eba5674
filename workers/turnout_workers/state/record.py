"""What Redis keeps of an endpoint: its numbers, packed into one record that a script reads and writes in one step.

Beside it in the same hash lie `ENDPOINT|reason` and `ENDPOINT|disabled`, texts for people, and `ENDPOINT|latency7`, how
many latencies were in bucket 7. Another layout of the record needs a key of another name.
"""

from __future__ import annotations

from struct import Struct

from turnout_workers.routing.fleet import ProviderMetrics

FRESH: dict[str, float] = {
    # Health, times in ms. `probe`: the number of the one that is out, 0 if none is.
    "open_until": 0,
    "trips": 0,
    "recovered_at": 0,
    "blocked_until": 0,
    "share": 1,
    "disabled": 0,
    "isolated": 0,
    "probe": 0,
    "probes": 0,
    "probe_until": 0,
    "consecutive": 0,
    "proven": 0,
    "weight": 0,
    "bad": 0,
    "outcomes_at": 0,
    # Metrics. -1: there was no sample. `_low`: the last one was below half the estimate.
    "ttft": -1,
    "ttft_low": 0,
    "pace": -1,
    "pace_low": 0,
    "residual": ProviderMetrics().sigma ** 2,
    "latency_at": 0,
    "samples": 0,
    "cached": 0,
    "calls": 0,
    "failures": 0,
    "input": 0,
    "output": 0,
    "spent": 0,
    # Load.
    "in_flight": 0,
    "oldest": 0,
    "free": 1,
    "free_at": 0,
    "ready_at": 0,
    "slots": -1,
    "shadow_price": 0,
}
"""The fields in their order, and what they are at first."""
_LAYOUT = Struct("<" + "d" * len(FRESH))

LUA = f"""
local {", ".join(map(str.upper, FRESH))} = {", ".join(map(str, range(1, len(FRESH) + 1)))}
local LAYOUT = '{_LAYOUT.format}'
local function fresh() return {{{", ".join(map(str, FRESH.values()))}}} end
"""
"""For scripts: in a record that is unpacked to a table, `OPEN_UNTIL` and so on say where each field is."""


def unpacked(record: bytes) -> dict[str, float]:
    return dict(zip(FRESH, _LAYOUT.unpack(record), strict=True))
