"""The fleet store in one process's memory, for the router used as a library.

It also specifies what `redis_store.py` and its Lua do; the tests add money and fences, which only workers use. Time is
in whole milliseconds of the clock that is passed in. No method yields to the event loop, so each is atomic.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from turnout_workers.routing import latency
from turnout_workers.routing.fleet import UNLIMITED, Circuit, Health, Observed, account_id
from turnout_workers.routing.health import RAMP_EXCESS, Counters, circuit, ejections_in_a_row, ramp_slots
from turnout_workers.state.record import FRESH, RESTORED, EndpointRecord, sampled
from turnout_workers.state.store import (
    KEEP_IF_WITHIN_S,
    PUBLISHED_S,
    VERDICT_S,
    Admission,
    Ask,
    Bid,
    Granted,
    Mark,
    NoRoom,
    Report,
    ms,
)
from turnout_workers.state.usage import ASK_AGAIN_MS, Charge, Obstacle, Pace, Room, Usage
from turnout_workers.state.windows import DAY, MIN_SQUEEZE, PACED_S, SQUEEZE, Use, slots_after, squeezed

EXPIRED_KEPT_MS = DAY[0] * DAY[1]
"""How long an expired lease is remembered."""


@dataclass
class _Lease:
    endpoint_id: str
    at: int
    ends_at: int
    charges: tuple[tuple[Usage, Charge], ...]
    """Where the call is counted, the endpoint first."""
    probe: float
    """Its number; 0: it is none."""
    expired_at: int | None = None


@dataclass
class _Endpoint(EndpointRecord):
    """With what Redis keeps beside the record."""

    texts: dict[str, str] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)

    def health_at(self, now: int) -> Health:
        return self.health(now, self.texts)

    def count_calls(self) -> None:
        began = self.usage.calls.values()
        self.in_flight, self.oldest = len(began), min(began, default=0)


@dataclass(eq=False)
class MemoryFleetStore:
    clock: Callable[[], float]
    """In seconds."""
    _endpoints: defaultdict[str, _Endpoint] = field(default_factory=lambda: defaultdict(_Endpoint), init=False)
    _accounts: defaultdict[str, Usage] = field(default_factory=lambda: defaultdict(Usage), init=False)
    """What the endpoints of an account have used together."""
    _leases: dict[str, _Lease] = field(default_factory=dict, init=False)
    _published: dict[str, tuple[int, Mapping[str, int]]] = field(default_factory=dict, init=False)
    _claims: dict[str, int] = field(default_factory=dict, init=False)

    def _now(self) -> int:
        return math.floor(self.clock() * 1000 + 1e-6)

    # --- admission ---------------------------------------------------------------------------------------

    async def admit(self, ask: Ask) -> Admission:
        now, longest = self._now(), dict[str, Obstacle]()
        for bid in ask.bids:
            if not (obstacles := list(self._obstacles(bid, ask, now))):
                for usage in {*self._counted_by(ask.bids[0]), *self._counted_by(bid)}:
                    usage.stop_keeping(ask.position)
                return self._grant(bid, ask, now)
            longest[bid.endpoint_id] = max(obstacles, key=lambda o: math.inf if o.until is None else o.until)
        first = ask.bids[0]
        until = longest[first.endpoint_id].until
        if ask.keeps_room and ask.position is not None and until is not None and until <= now + ms(KEEP_IF_WITHIN_S):
            for usage in self._counted_by(first):
                usage.keep_room(ask.position, _need(first), now)
        return NoRoom.of(now, longest)

    def _obstacles(self, bid: Bid, ask: Ask, now: int) -> Iterator[Obstacle]:
        """All that stand in the way of this bid."""
        known, limits, counted_by = self._endpoints[bid.endpoint_id], bid.limits, self._counted_by(bid)
        for usage in counted_by:
            usage.roll(now)
        health = known.health_at(now)
        state = circuit(health, now / 1000)
        if state in (Circuit.ISOLATED, Circuit.DISABLED):
            yield Obstacle(None, state.value)
        elif state is Circuit.OPEN:
            yield Obstacle(known.open_until, "open")
        elif state is Circuit.HALF_OPEN and known.probe_until > now:
            yield Obstacle(now + ASK_AGAIN_MS, "probing")
        if known.cooldown_until > now:
            yield Obstacle(known.cooldown_until, "cooldown")
        pace = None
        if state is Circuit.RAMPING:
            slots = ramp_slots(health, now / 1000)
            limits = replace(limits, concurrency=min(slots, limits.concurrency or slots))
            pace = Pace(RAMP_EXCESS, known.recovered_at)
        if known.cooldown_until > max(0, now - ms(PACED_S)):
            share = squeezed(known.share, known.cooldown_until, now)
            slots = slots_after(known.carried, known.cooldown_until, now)
            pace = Pace(share, max(known.cooldown_until, pace.since if pace else 0), slots)
        known.slots = -1 if bid.limits.concurrency is None else bid.limits.concurrency
        room = Room()
        for usage, allowed in zip(counted_by, (limits, bid.shared_limits), strict=False):
            here, full = usage.room(allowed, _need(bid), pace, ask.headroom, ask.position, now)
            room = room.with_less(here)
            yield from full
        known.free, known.free_at, known.ready_at = room.free, now, room.ready_at
        known.fits = max(0, math.floor(room.fits)) if room.ready_at else 0

    def _counted_by(self, bid: Bid) -> tuple[Usage, ...]:
        """What a call to this bid's endpoint is charged to: the endpoint, and its account if that has limits."""
        usage = self._endpoints[bid.endpoint_id].usage
        return (usage,) if bid.shared_limits == UNLIMITED else (usage, self._accounts[account_id(bid.endpoint_id)])

    def _grant(self, bid: Bid, ask: Ask, now: int) -> Granted:
        known, ends_at = self._endpoints[bid.endpoint_id], now + ms(ask.ttl_s)
        probe = 0.0
        if circuit(known.health_at(now), now / 1000) is Circuit.HALF_OPEN:
            known.probes += 1
            known.probe = probe = known.probes
            known.probe_until = ends_at
        charges = tuple((usage, usage.charge(ask.lease_id, _need(bid), now)) for usage in self._counted_by(bid))
        known.count_calls()
        self._leases[ask.lease_id] = _Lease(bid.endpoint_id, now, ends_at, charges, probe)
        return Granted(ask.lease_id, bid.endpoint_id, now / 1000, probe > 0)

    # --- the end of a call -------------------------------------------------------------------------------

    async def report(self, report: Report) -> Counters:
        now, ok = self._now(), report.ok
        known = self._endpoints[report.endpoint_id]
        lease = self._lease(report.lease_id, now)
        if lease is None or lease.endpoint_id != report.endpoint_id:  # reported before, or forgotten
            return _counters(known, now)
        del self._leases[report.lease_id]
        for usage, charge in lease.charges:
            usage.release(report.lease_id)
            usage.correct(charge, Use(1, report.input_tokens, report.output_tokens))
        known.count_calls()
        for observed in report.limits:
            known.usage.learn_from_headers(lease.charges[0][1], observed, now)
        probe = lease.probe > 0 and lease.probe == known.probe
        if probe:
            known.probe_until = now + ms(VERDICT_S)
        if report.counts and (probe or lease.at >= known.open_until):
            decay = known.decay(now)  # decayed sums: the order in which outcomes of one moment arrive doesn't matter
            known.weight, known.bad_weight, known.outcomes_at = (
                known.weight * decay + 1,
                known.bad_weight * decay + (not ok),
                now,
            )
            known.consecutive = 0 if ok else known.consecutive + 1
            known.proven += ok
            _count_as_begun(known, lease.charges[0][1].total.requests, ok)
        if ok and report.latency_s is not None:
            _count_latency(known, report, report.latency_s, now)
        if ok and report.input_tokens:
            cached = min(1.0, report.cached_tokens / report.input_tokens)
            known.cached += latency.CACHED_STEP * (cached - known.cached)
        known.calls += 1
        known.failures += not ok
        known.spent += report.cost_microusd
        return replace(_counters(known, now), probe=probe)

    async def expire(self, limit: int = 1000) -> int:
        now = self._now()
        self._leases = {id: held for id, held in self._leases.items() if self._lease(id, now)}
        live = ((held.ends_at, held.endpoint_id, id) for id, held in self._leases.items() if held.expired_at is None)
        due = sorted(one for one in live if one[0] <= now)[:limit]
        for _, endpoint_id, lease_id in due:
            lease = self._leases[lease_id]
            lease.expired_at = now
            for usage, _ in lease.charges:
                usage.release(lease_id)
            self._endpoints[endpoint_id].count_calls()
        return len(due)

    def _lease(self, lease_id: str, now: int) -> _Lease | None:
        """A lease. One that expired is kept for a day, so that a late report finds what to move."""
        lease = self._leases.get(lease_id)
        forgotten = lease is not None and lease.expired_at is not None and lease.expired_at <= now - EXPIRED_KEPT_MS
        return None if forgotten else lease

    # --- health ------------------------------------------------------------------------------------------

    async def eject(self, endpoint_id: str, open_s: float, reason: str) -> bool:
        now, known = self._now(), self._endpoints[endpoint_id]
        if news := known.open_until <= now:
            known.ejections = ejections_in_a_row(known.health_at(now), now / 1000) + 1
        known.open_until = max(known.open_until, now + ms(open_s))
        known.probe, known.probe_until, known.texts["ejected"] = 0, 0, reason
        return news

    async def recover(self, endpoint_id: str) -> None:
        now, known = self._now(), self._endpoints[endpoint_id]
        if circuit(known.health_at(now), now / 1000) is Circuit.HALF_OPEN:
            known.recovered_at, known.probe, known.probe_until = now, 0, 0
            known.consecutive = known.proven = known.bad_weight = known.weight = 0

    async def mark(
        self,
        what: Mark,
        endpoint_ids: Sequence[str],
        reason: str = "",
        for_s: float = 0,
        begun_at: float | None = None,
    ) -> None:
        now, until = self._now(), self._now() + ms(for_s)
        begun = now if begun_at is None else ms(begun_at)
        for known in map(self._endpoints.__getitem__, endpoint_ids):
            if what == "cooldown":
                if begun >= known.cooldown_until:  # once a cooldown, however many calls ran into it
                    known.share = max(MIN_SQUEEZE, squeezed(known.share, known.cooldown_until, now) * SQUEEZE)
                    known.carried = known.in_flight
                known.carried = min(known.carried, known.in_flight)
                if until > known.cooldown_until:
                    known.cooldown_until, known.texts[what] = until, reason
            elif what == "restored":
                for name in RESTORED:
                    setattr(known, name, getattr(FRESH, name))
                known.usage.forget_headers()
            else:
                setattr(known, what, now)
                known.texts[what] = reason

    # --- load and state ------------------------------------------------------------------------------------

    async def publish(self, worker: str, overdue: Mapping[str, int]) -> None:
        now, known = self._now(), self._published
        self._published = {name: told for name, told in known.items() if told[0] + ms(PUBLISHED_S) > now}
        self._published[worker] = (now, dict(overdue))

    async def claim_work(self, work: str, for_s: float) -> bool:
        if self._claims.get(work, 0) > self._now():
            return False
        self._claims[work] = self._now() + ms(for_s)
        return True

    async def overdue(self) -> Counter[str]:
        now, overdue = self._now(), Counter[str]()
        for at, calls in self._published.values():
            if at + ms(PUBLISHED_S) > now:
                overdue.update(calls)
        return overdue

    async def state(self) -> tuple[float, Mapping[str, Observed]]:
        now = self._now()
        return now / 1000, {id: known.observed(now, known.texts) for id, known in self._endpoints.items()}


def _need(bid: Bid) -> Use:
    return Use(1, bid.input_tokens, bid.output_tokens)


def _counters(known: EndpointRecord, now: int) -> Counters:
    decay = known.decay(now)
    weight, bad = known.weight * decay, known.bad_weight * decay
    rate = bad / weight if weight else 0.0
    as_begun = int(known.run_to - known.run_from) + 1
    return Counters(now / 1000, int(known.consecutive), as_begun, rate, weight, probe=False)


def _count_as_begun(known: EndpointRecord, number: int, ok: bool) -> None:
    """Failures in a row by the order in which calls began, of which each has its number.

    A success breaks only a row that began before it, and a call that has not ended stands in its place like one.
    """
    if ok:
        if number > known.run_to:
            known.run_from, known.run_to = number + 1, number
    elif number == known.run_from - 1:
        known.run_from = number
    elif number > known.run_to:
        if number > known.run_to + 1:
            known.run_from = number
        known.run_to = number


def _count_latency(known: _Endpoint, report: Report, latency_s: float, now: int) -> None:
    def stepped(estimate: float, was_low: float, sample: float) -> tuple[float, bool]:
        low, elapsed_s = sample < estimate / 2, (now - known.latency_at) / 1000
        return latency.step(sampled(estimate), sample, elapsed_s, low and was_low > 0), low

    first = report.ttft_s if report.output_tokens else latency_s
    if first is not None:
        known.ttft, known.ttft_low = stepped(known.ttft, known.ttft_low, first)
    if report.output_tokens:
        sample = max(0.0, latency_s - (max(known.ttft, 0.0) if first is None else first)) / report.output_tokens
        known.s_per_token, known.s_per_token_low = stepped(known.s_per_token, known.s_per_token_low, sample)
    if report.predicted_s:
        error = math.log(max(latency_s, 1e-3) / report.predicted_s)
        error = max(-latency.MAX_RESIDUAL, min(latency.MAX_RESIDUAL, error))
        known.residual += latency.SIGMA_STEP * (error * error - known.residual)
    known.latency_at = now
    known.samples += 1
