"""What a store keeps about an endpoint: one record of numbers, read as health, metrics and load.

`memory_store.py` changes it as an object. In Redis it is packed, so that a script reads and writes it in one step. The
texts for people are fields of the same hash: `ENDPOINT ejected` and so on. A record with another layout needs a key
with another name, which says how many numbers it has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from struct import Struct

from turnout_workers.routing.fleet import Health, Load, Observed, ProviderMetrics
from turnout_workers.routing.health import ERROR_MEMORY_S
from turnout_workers.routing.latency import MIN_SIGMA
from turnout_workers.state.windows import KINDS


@dataclass(slots=True)
class EndpointRecord:
    """Times are in ms, 0 is never. -1: no sample yet, or no such limit."""

    open_until: float = 0
    ejections: float = 0
    recovered_at: float = 0
    cooldown_until: float = 0
    share: float = 1
    """Share of its limits' pace that the last cooldown left."""
    carried: float = 0
    """Fewest calls in flight at the refusals that led to the last cooldown."""
    disabled: float = 0
    isolated: float = 0
    probe: float = 0
    """Number of the probe in flight. 0: none."""
    probes: float = 0
    probe_until: float = 0
    consecutive: float = 0
    run_from: float = 1
    run_to: float = 0
    """Numbers of the first and last call of the current run of failures, in the order in which calls began."""
    proven: float = 0
    weight: float = 0
    """Decayed count of recent outcomes as of `outcomes_at`; `bad_weight` counts the failures among them."""
    bad_weight: float = 0
    outcomes_at: float = 0
    ttft: float = -1
    ttft_low: float = 0
    """Whether the last sample was below half the estimate."""
    s_per_token: float = -1
    s_per_token_low: float = 0
    residual: float = ProviderMetrics().sigma ** 2
    """Mean square of the log of observed / predicted latency."""
    latency_at: float = 0
    samples: float = 0
    cached: float = 0
    calls: float = 0
    failures: float = 0
    spent: float = 0
    in_flight: float = 0
    oldest: float = 0
    free: float = 1
    """Share of the scarcest limit that was free at `free_at`."""
    free_at: float = 0
    ready_at: float = 0
    fits: float = 0
    """Tokens for which there is room before `ready_at`."""
    full: float = 0
    """The limit without room until `ready_at`: its place in `LIMITS`, from 1; 0: none."""
    slots: float = -1

    def decay(self, now: int) -> float:
        """The factor by which the weights of outcomes have decayed by now."""
        return math.exp(-max(0, now - self.outcomes_at) / 1000 / ERROR_MEMORY_S)

    def health(self, now: int, texts: Mapping[str, str]) -> Health:
        """texts: the texts beside the record, by name."""
        return Health(
            open_until=self.open_until / 1000,
            ejections=int(self.ejections),
            recovered_at=self.recovered_at / 1000,
            proven=int(self.proven),
            cooldown_until=self.cooldown_until / 1000,
            disabled=texts.get("disabled", "") if self.disabled else None,
            disabled_at=self.disabled / 1000,
            isolated=texts.get("isolated", "") if self.isolated else None,
            ejection_reason=texts.get("ejected", "") if self.open_until else "",
            cooldown_reason=texts.get("cooldown", "") if self.cooldown_until else "",
            consecutive_failures=int(self.consecutive),
            probing=self.probe_until > now,
        )

    def observed(self, now: int, texts: Mapping[str, str]) -> Observed:
        """Health, metrics and load, with the texts that aren't in the record."""
        metrics = ProviderMetrics(
            ttft_s=sampled(self.ttft),
            s_per_token=sampled(self.s_per_token),
            sigma=max(MIN_SIGMA, math.sqrt(self.residual)),
            latency_at=self.latency_at / 1000,
            latency_samples=int(self.samples),
            error_rate=self.bad_weight / self.weight if self.weight else 0.0,
            error_weight=self.weight * self.decay(now),
            cached_share=self.cached,
            calls=int(self.calls),
            failures=int(self.failures),
            spent_microusd=int(self.spent),
        )
        free = self.free
        if self.ready_at <= now:  # since then the window has been emptying
            free = min(1.0, free + max(0, now - self.free_at) / 60_000)
        if self.slots > 0:
            free = min(free, max(0.0, 1 - self.in_flight / self.slots))
        load = Load(
            in_flight=int(self.in_flight),
            oldest_started_at=self.oldest / 1000 if self.in_flight else 0.0,
            free=free,
            ready_at=self.ready_at / 1000 if self.ready_at > now else 0.0,
            fits=int(self.fits),
            full=LIMITS[int(self.full) - 1] if self.full and self.ready_at > now else "",
        )
        return Observed(self.health(now, texts), metrics, load)


def sampled(value: float) -> float | None:
    return value if value >= 0 else None


LIMITS = tuple(KINDS)
"""Names of the limits on what calls take."""
TEXTS = ("ejected", "cooldown", "disabled", "isolated")
"""Fields of the hash that say why the endpoint is, or last was, in this state."""
FRESH = EndpointRecord()
NAMES = tuple(field.name for field in fields(EndpointRecord))
RESTORED = (
    *("open_until", "ejections", "recovered_at", "cooldown_until", "share", "carried", "disabled", "isolated"),
    *("probe", "probe_until", "consecutive", "run_from", "run_to", "proven", "weight", "bad_weight"),
    *("free", "free_at", "ready_at", "fits", "full"),
)
"""Fields that are reset when an operator or a health check restores the endpoint, as is what its headers said."""
_LAYOUT = Struct("<" + "d" * len(NAMES))

LUA = f"""
local {", ".join(map(str.upper, NAMES))} = {", ".join(map(str, range(1, len(NAMES) + 1)))}
local RESTORED = {{{", ".join(map(str.upper, RESTORED))}}}
local LAYOUT = '{_LAYOUT.format}'
local function fresh() return {{{", ".join(str(getattr(FRESH, name)) for name in NAMES)}}} end
"""
"""For scripts: `OPEN_UNTIL` and so on are the indexes of the fields in an unpacked record."""


def unpacked(packed: bytes) -> EndpointRecord:
    return EndpointRecord(*_LAYOUT.unpack(packed))
