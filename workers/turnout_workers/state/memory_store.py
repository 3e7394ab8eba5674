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
from turnout_workers.state.record import FRESH, LIMITS, RESTORED, EndpointRecord, sampled
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
"""How long an expired lease is kept, so that a late report can be booked."""


@dataclass
class _Lease:
    endpoint_id: str
    at: int
    ends_at: int
    charges: tuple[tuple[Usage, Charge], ...]
    """Where the call is counted: the endpoint first, then its account."""
    probe: float
    """The number of the probe. 0: not a probe."""
    expired_at: int | None = None


@dataclass
class _Endpoint(EndpointRecord):
    """The record, and what Redis keeps beside it."""

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
    """What all endpoints of an account have used."""
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
        """Everything that stands in the way of this bid."""
        endpoint, limits, counted_by = self._endpoints[bid.endpoint_id], bid.limits, self._counted_by(bid)
        for usage in counted_by:
            usage.roll(now)
        health = endpoint.health_at(now)
        state = circuit(health, now / 1000)
        if state in (Circuit.ISOLATED, Circuit.DISABLED):
            yield Obstacle(None, state.value)
        elif state is Circuit.OPEN:
            yield Obstacle(endpoint.open_until, "open")
        elif state is Circuit.HALF_OPEN and endpoint.probe_until > now:
            yield Obstacle(now + ASK_AGAIN_MS, "probing")
        if endpoint.cooldown_until > now:
            yield Obstacle(endpoint.cooldown_until, "cooldown")
        pace = None
        if state is Circuit.RAMPING:
            slots = ramp_slots(health, now / 1000)
            limits = replace(limits, concurrency=min(slots, limits.concurrency or slots))
            pace = Pace(RAMP_EXCESS, endpoint.recovered_at)
        if endpoint.cooldown_until > max(0, now - ms(PACED_S)):
            share = squeezed(endpoint.share, endpoint.cooldown_until, now)
            ramped = endpoint.recovered_at >= endpoint.cooldown_until
            most = None if ramped else slots_after(endpoint.carried, endpoint.cooldown_until, now)
            pace = Pace(share, max(endpoint.cooldown_until, pace.since if pace else 0), most)
        endpoint.slots = -1 if bid.limits.concurrency is None else bid.limits.concurrency
        room = Room()
        for usage, allowed in zip(counted_by, (limits, bid.shared_limits), strict=False):
            here, full = usage.room(allowed, _need(bid), pace, ask.headroom, ask.position, now)
            pace = pace and pace._replace(slots=None)  # it is one endpoint that refused
            room = room.with_less(here)
            yield from full
        endpoint.free, endpoint.free_at, endpoint.ready_at = room.free, now, room.ready_at
        endpoint.fits = max(0, math.floor(room.fits)) if room.ready_at else 0
        endpoint.full = LIMITS.index(room.full) + 1 if room.full else 0

    def _counted_by(self, bid: Bid) -> tuple[Usage, ...]:
        """Where a call to this bid's endpoint is counted: the endpoint, and its account if that has limits."""
        usage = self._endpoints[bid.endpoint_id].usage
        return (usage,) if bid.shared_limits == UNLIMITED else (usage, self._accounts[account_id(bid.endpoint_id)])

    def _grant(self, bid: Bid, ask: Ask, now: int) -> Granted:
        endpoint, ends_at = self._endpoints[bid.endpoint_id], now + ms(ask.ttl_s)
        probe = 0.0
        if circuit(endpoint.health_at(now), now / 1000) is Circuit.HALF_OPEN:
            endpoint.probes += 1
            endpoint.probe = probe = endpoint.probes
            endpoint.probe_until = ends_at
        charges = tuple((usage, usage.charge(ask.lease_id, _need(bid), now)) for usage in self._counted_by(bid))
        endpoint.count_calls()
        self._leases[ask.lease_id] = _Lease(bid.endpoint_id, now, ends_at, charges, probe)
        return Granted(ask.lease_id, bid.endpoint_id, now / 1000, probe > 0)

    # --- the end of a call -------------------------------------------------------------------------------

    async def report(self, report: Report) -> Counters:
        now, ok = self._now(), report.ok
        endpoint = self._endpoints[report.endpoint_id]
        lease = self._lease(report.lease_id, now)
        if lease is None or lease.endpoint_id != report.endpoint_id:  # reported before, or forgotten
            return _counters(endpoint, now)
        del self._leases[report.lease_id]
        for usage, charge in lease.charges:
            usage.release(report.lease_id)
            usage.correct(charge, Use(1, report.input_tokens, report.output_tokens))
        endpoint.count_calls()
        for observed in report.limits:
            endpoint.usage.learn_from_headers(lease.charges[0][1], lease.at, observed, now)
        probe = lease.probe > 0 and lease.probe == endpoint.probe
        if probe:
            endpoint.probe_until = now + ms(VERDICT_S)
        if report.counts and (probe or lease.at >= endpoint.open_until):
            decay = endpoint.decay(now)  # sums, so that the order of simultaneous outcomes doesn't matter
            endpoint.weight = endpoint.weight * decay + 1
            endpoint.bad_weight = endpoint.bad_weight * decay + (not ok)
            endpoint.outcomes_at = now
            endpoint.consecutive = 0 if ok else endpoint.consecutive + 1
            endpoint.proven += ok
            _count_run(endpoint, lease.charges[0][1].total.requests, ok)
        if ok and report.latency_s is not None:
            _count_latency(endpoint, report, report.latency_s, now)
        if ok and report.cached_share is not None:
            endpoint.cached += latency.CACHED_STEP * (report.cached_share - endpoint.cached)
        endpoint.calls += 1
        endpoint.failures += not ok
        endpoint.spent += report.cost_microusd
        return replace(_counters(endpoint, now), probe=probe)

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
        """The lease. An expired one is kept for a day, so that a late report can be booked."""
        lease = self._leases.get(lease_id)
        forgotten = lease is not None and lease.expired_at is not None and lease.expired_at <= now - EXPIRED_KEPT_MS
        return None if forgotten else lease

    # --- health ------------------------------------------------------------------------------------------

    async def eject(self, endpoint_id: str, open_s: float, reason: str) -> bool:
        now, endpoint = self._now(), self._endpoints[endpoint_id]
        if news := endpoint.open_until <= now:
            endpoint.ejections = ejections_in_a_row(endpoint.health_at(now), now / 1000) + 1
        endpoint.open_until = max(endpoint.open_until, now + ms(open_s))
        endpoint.probe, endpoint.probe_until, endpoint.texts["ejected"] = 0, 0, reason
        return news

    async def recover(self, endpoint_id: str) -> None:
        now, endpoint = self._now(), self._endpoints[endpoint_id]
        if circuit(endpoint.health_at(now), now / 1000) is Circuit.HALF_OPEN:
            endpoint.recovered_at, endpoint.probe, endpoint.probe_until = now, 0, 0
            endpoint.consecutive = endpoint.proven = endpoint.bad_weight = endpoint.weight = 0

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
        for endpoint in map(self._endpoints.__getitem__, endpoint_ids):
            if what == "cooldown":
                if begun >= endpoint.cooldown_until:  # once per cooldown, however many calls ran into it
                    endpoint.share = max(MIN_SQUEEZE, squeezed(endpoint.share, endpoint.cooldown_until, now) * SQUEEZE)
                    endpoint.carried = endpoint.in_flight
                endpoint.carried = min(endpoint.carried, endpoint.in_flight)
                if until > endpoint.cooldown_until:
                    endpoint.cooldown_until, endpoint.texts[what] = until, reason
            elif what == "restored":
                for name in RESTORED:
                    setattr(endpoint, name, getattr(FRESH, name))
                endpoint.usage.forget_headers()
            else:
                setattr(endpoint, what, now)
                endpoint.texts[what] = reason

    # --- load and state ------------------------------------------------------------------------------------

    async def publish(self, worker: str, overdue: Mapping[str, int]) -> None:
        now, published = self._now(), self._published
        self._published = {name: counts for name, counts in published.items() if counts[0] + ms(PUBLISHED_S) > now}
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
        return now / 1000, {id: endpoint.observed(now, endpoint.texts) for id, endpoint in self._endpoints.items()}


def _need(bid: Bid) -> Use:
    return Use(1, bid.input_tokens, bid.output_tokens)


def _counters(endpoint: EndpointRecord, now: int) -> Counters:
    decay = endpoint.decay(now)
    weight, bad = endpoint.weight * decay, endpoint.bad_weight * decay
    rate = bad / weight if weight else 0.0
    as_begun = int(endpoint.run_to - endpoint.run_from) + 1
    return Counters(now / 1000, int(endpoint.consecutive), as_begun, rate, weight, probe=False)


def _count_run(endpoint: EndpointRecord, number: int, ok: bool) -> None:
    """Update the run of failures, in the order in which calls began. `number` is that of this call.

    A success ends only a run that began before it. A call that hasn't ended yet counts as a success.
    """
    if ok:
        if number > endpoint.run_to:
            endpoint.run_from, endpoint.run_to = number + 1, number
    elif number == endpoint.run_from - 1:
        endpoint.run_from = number
    elif number > endpoint.run_to:
        if number > endpoint.run_to + 1:
            endpoint.run_from = number
        endpoint.run_to = number


def _count_latency(endpoint: _Endpoint, report: Report, latency_s: float, now: int) -> None:
    def stepped(estimate: float, was_low: float, sample: float) -> tuple[float, bool]:
        low, elapsed_s = sample < estimate / 2, (now - endpoint.latency_at) / 1000
        return latency.step(sampled(estimate), sample, elapsed_s, low and was_low > 0), low

    first = report.ttft_s if report.output_tokens else latency_s
    if first is not None:
        endpoint.ttft, endpoint.ttft_low = stepped(endpoint.ttft, endpoint.ttft_low, first)
    if report.output_tokens:
        sample = max(0.0, latency_s - (max(endpoint.ttft, 0.0) if first is None else first)) / report.output_tokens
        endpoint.s_per_token, endpoint.s_per_token_low = stepped(endpoint.s_per_token, endpoint.s_per_token_low, sample)
    if report.predicted_s:
        error = math.log(max(latency_s, 1e-3) / report.predicted_s)
        error = max(-latency.MAX_RESIDUAL, min(latency.MAX_RESIDUAL, error))
        endpoint.residual += latency.SIGMA_STEP * (error * error - endpoint.residual)
    endpoint.latency_at = now
    endpoint.samples += 1
