"""The fleet store in one process's memory: the executable specification of `redis.py` and its Lua.

It serves the router used as a library, simulations and tests. Time is whole milliseconds of the clock that is
passed in. Every method runs without yielding to the event loop, so it is atomic as it stands.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from turnout_workers.routing import latency
from turnout_workers.routing.fleet import UNLIMITED, Circuit, Health, Load, ProviderMetrics, account_id
from turnout_workers.routing.health import ERROR_MEMORY_S, circuit, ejections_in_a_row, ramp_room
from turnout_workers.state.store import (
    ASK_AGAIN_S,
    CEILING,
    LATENCY_BUCKETS,
    PUBLISHED_S,
    VERDICT_S,
    Account,
    Admission,
    Ask,
    Bid,
    Ceiling,
    Counters,
    EndpointState,
    Fenced,
    Granted,
    NoRoom,
    Report,
    free_share,
    latency_bucket,
)
from turnout_workers.state.usage import Charge, Obstacle, Usage
from turnout_workers.state.windows import DAY, SQUEEZE, SQUEEZE_LEAST, Use, squeezed

SIGMA_STEP = 0.05
"""Weight of a new residual in the mean square of which `sigma` is the root …"""
CACHED_STEP = 0.05
"""Weight of a new answer in the share of input tokens that were cached."""
RESIDUAL_MOST = 2.0
"""… after it was cut to this, so that one freak doesn't double it."""


@dataclass
class _Lease:
    endpoint_id: str
    at: float
    charges: tuple[tuple[Usage, Charge], ...]
    """Where the call is counted, the endpoint first."""
    cost: int
    accounts: tuple[str, ...]
    probe: bool
    expired_at: float | None = None


@dataclass
class _Record:
    """All that is known of one endpoint."""

    health: Health = field(default_factory=Health)
    metrics: ProviderMetrics = field(default_factory=ProviderMetrics)
    usage: Usage = field(default_factory=Usage)
    share: float = 1.0
    calls: dict[str, _Lease] = field(default_factory=dict)
    probe: str = ""
    probe_until: float = 0.0
    bad: float = 0.0
    outcomes_at: float = 0.0
    ttft_low: bool = False
    pace_low: bool = False
    residual: float = ProviderMetrics().sigma ** 2
    latencies: list[int] = field(default_factory=lambda: [0] * LATENCY_BUCKETS)
    free: float = 1.0
    free_at: float = 0.0
    slots: int | None = None
    ready_at: float = 0.0
    shadow_price: float = 0.0


KEPT_S = DAY[0] * DAY[1] / 1000
"""How long an expired lease is remembered."""


class MemoryFleetStore:
    """`clock` gives seconds; of the ledger's, `jobs` are its records by id, for fenced admissions, and `ceilings` those
    of batches, by account."""

    def __init__(
        self,
        clock: Callable[[], float],
        jobs: MutableMapping[str, dict[str, Any]] | None = None,
        ceilings: MutableMapping[str, int] | None = None,
    ) -> None:
        self._clock = clock
        self._jobs = {} if jobs is None else jobs
        self._ceilings = {} if ceilings is None else ceilings
        self._records: dict[str, _Record] = {}
        self._accounts: dict[str, Usage] = {}
        """What the endpoints of an account have used together."""
        self._leases: dict[str, _Lease] = {}
        self._expiry: dict[str, float] = {}
        self._money: dict[str, Account] = {}
        self._published: dict[str, tuple[float, Mapping[str, int], Mapping[str, int]]] = {}

    def _now(self) -> float:
        return math.floor(self._clock() * 1000 + 1e-6) / 1000

    def _record(self, endpoint_id: str) -> _Record:
        return self._records.setdefault(endpoint_id, _Record())

    # --- admission ---------------------------------------------------------------------------------------

    async def admit(self, ask: Ask) -> Admission:
        now = self._now()
        job: dict[str, Any] = self._jobs.get(ask.fence.job_id, {}) if ask.fence else {}
        if ask.fence and (job.get("token") != ask.fence.token or job.get("state") not in ("leased", "calling")):
            return Fenced()
        if held := self._known(ask.lease_id, now):  # a repeated admission, its first answer was lost
            if held.expired_at is not None:
                return Fenced()
            return Granted(ask.lease_id, held.endpoint_id, held.at, held.probe)
        obstacles: dict[str, Obstacle] = {}
        for bid in ask.bids:
            obstacle = self._obstacle(bid, ask, now)
            if obstacle is None:
                if ask.fence:
                    job.update(state="calling", calls=job.get("calls", 0) + 1)
                    job.setdefault("routed", []).append(bid.endpoint_id)
                return self._grant(bid, ask, now)
            obstacles[bid.endpoint_id] = obstacle
        return NoRoom.of(now, {endpoint_id: (o.until, o.reason) for endpoint_id, o in obstacles.items()})

    def _obstacle(self, bid: Bid, ask: Ask, now: float) -> Obstacle | None:
        """The one that stands longest in the way of this bid."""
        record = self._record(bid.endpoint_id)
        found = self._circuit_obstacles(record, bid, now)
        found += self._capacity_obstacles(record, bid, ask.headroom, now)
        found += self._money_obstacles((*ask.ceilings, *bid.ceilings), bid.cost_microusd)
        waits = [replace(o, until=now + ASK_AGAIN_S) if o.until == 0 else o for o in found]
        return max(waits, key=lambda o: math.inf if o.until is None else o.until, default=None)

    def _circuit_obstacles(self, record: _Record, bid: Bid, now: float) -> list[Obstacle]:
        health, found = record.health, []
        match circuit(health, now):
            case Circuit.ISOLATED:
                found.append(Obstacle(None, "isolated"))
            case Circuit.DISABLED:
                found.append(Obstacle(None, "disabled"))
            case Circuit.OPEN:
                found.append(Obstacle(health.open_until, "open"))
            case Circuit.HALF_OPEN if record.probe_until > now:
                found.append(Obstacle(0, "probing"))
            case Circuit.HALF_OPEN if not bid.probe_allowed:
                found.append(Obstacle(0, "probe not allowed"))
            case _:
                pass
        if health.blocked_until > now:
            found.append(Obstacle(health.blocked_until, "cooldown"))
        return found

    def _capacity_obstacles(self, record: _Record, bid: Bid, headroom: float, now: float) -> list[Obstacle]:
        found, limits = [], bid.limits
        shares = squeezed(record.share, record.health.blocked_until, now), 1.0
        counted_by = self._counted_by(bid)
        for usage in counted_by:
            usage.roll(now)
        if circuit(record.health, now) is Circuit.RAMPING:
            slots, per_second = ramp_room(limits, record.health, len(record.calls), now)
            limits = replace(limits, concurrency=slots)
            if per_second is not None:
                most = max(1, math.floor(per_second * headroom))
                if (until := record.usage.until_the_next_second(most)) is not None:
                    found.append(Obstacle(until, "ramping"))
        record.slots, record.free, record.free_at, record.ready_at = bid.limits.concurrency, 1.0, now, 0.0
        need = Use(1, bid.input_tokens, bid.output_tokens)
        for usage, allowed, share in zip(counted_by, (limits, bid.shared_limits), shares, strict=False):
            free, ready_at, full = usage.room(allowed, need, share, headroom, now)
            record.free, record.ready_at = min(record.free, free), max(record.ready_at, ready_at)
            found += full
        return found

    def _counted_by(self, bid: Bid) -> tuple[Usage, ...]:
        """What a call to this bid's endpoint is charged to: the endpoint, and its account if that has limits."""
        usage = self._record(bid.endpoint_id).usage
        if bid.shared_limits == UNLIMITED:
            return (usage,)
        return usage, self._accounts.setdefault(account_id(bid.endpoint_id), Usage())

    def _money_obstacles(self, ceilings: tuple[Ceiling, ...], cost: int) -> list[Obstacle]:
        found = []
        for ceiling in ceilings:
            account = self._money.get(ceiling.account, Account())
            certain = account.spent + account.unsure + cost
            limit = ceiling.limit_microusd
            # A batch has the ceiling that its producer has set. Other accounts are none of a producer's business.
            if limit is None and ceiling.account.startswith("batch:"):
                limit = self._ceilings.get(ceiling.account)
            if limit is None or certain + account.reserved <= limit:
                continue
            # What only reservations stand against may have room again once those calls are paid.
            found.append(Obstacle(None if certain > limit else 0, CEILING + ceiling.account))
        return found

    def _grant(self, bid: Bid, ask: Ask, now: float) -> Granted:
        record = self._records[bid.endpoint_id]
        use = Use(1, bid.input_tokens, bid.output_tokens)
        probe = circuit(record.health, now) is Circuit.HALF_OPEN
        accounts = tuple(ceiling.account for ceiling in (*ask.ceilings, *bid.ceilings))
        charges = tuple((usage, usage.charge(ask.lease_id, use)) for usage in self._counted_by(bid))
        lease = _Lease(bid.endpoint_id, now, charges, bid.cost_microusd, accounts, probe)
        record.calls[ask.lease_id] = lease
        self._leases[ask.lease_id] = lease
        self._expiry[ask.lease_id] = now + _ms(ask.ttl_s)
        if probe:
            record.probe, record.probe_until = ask.lease_id, now + _ms(ask.ttl_s)
        self._book(accounts, reserved=bid.cost_microusd)
        return Granted(ask.lease_id, bid.endpoint_id, now, probe)

    def _book(self, accounts: Sequence[str], **amounts: int) -> None:
        for name in accounts:
            account = self._money.get(name, Account())
            sums = {column: getattr(account, column) + amount for column, amount in amounts.items()}
            self._money[name] = replace(account, **sums)

    # --- the end of a call -------------------------------------------------------------------------------

    async def report(self, report: Report) -> Counters:
        now = self._now()
        record = self._record(report.endpoint_id)
        lease = self._known(report.lease_id, now)
        if lease is None or lease.endpoint_id != report.endpoint_id:  # reported before, or forgotten
            return self._counters(record, now)
        del self._leases[report.lease_id]
        probe = record.probe == report.lease_id
        if probe:
            record.probe_until = now + VERDICT_S
        self._expiry.pop(report.lease_id, None)
        record.calls.pop(report.lease_id, None)
        for usage, charge in lease.charges:
            usage.release(report.lease_id)
            usage.correct(charge, Use(1, report.input_tokens, report.output_tokens), now)
        held = "reserved" if lease.expired_at is None else "unsure"
        self._book(lease.accounts, **{held: -lease.cost})
        self._book(lease.accounts, spent=report.cost_microusd, unsure=report.unsure_microusd)
        for observed in report.limits:
            record.usage.learn(lease.charges[0][1], observed, now)
        if report.counts and (probe or lease.at >= record.health.open_until):
            self._count_outcome(record, report.ok, now)
        if report.ok and report.latency_s is not None:
            self._count_latency(record, report, report.latency_s, now)
        metrics = record.metrics
        cached_share = metrics.cached_share
        if report.ok and report.input_tokens:
            cached_share += CACHED_STEP * (min(1.0, report.cached_tokens / report.input_tokens) - cached_share)
        record.metrics = replace(
            metrics,
            cached_share=cached_share,
            calls=metrics.calls + 1,
            failures=metrics.failures + (not report.ok),
            input_tokens=metrics.input_tokens + report.input_tokens,
            output_tokens=metrics.output_tokens + report.output_tokens,
            spent_microusd=metrics.spent_microusd + report.cost_microusd,
        )
        return replace(self._counters(record, now), probe=probe)

    def _count_outcome(self, record: _Record, ok: bool, now: float) -> None:
        """Decayed sums: the order in which outcomes of one moment arrive makes no difference."""
        weight, bad = self._outcomes(record, now)
        weight, bad, record.outcomes_at = weight + 1, bad + (not ok), now
        record.bad = bad
        record.metrics = replace(record.metrics, error_weight=weight, error_rate=bad / weight)
        row = 0 if ok else record.health.consecutive_failures + 1
        record.health = replace(record.health, consecutive_failures=row, proven=record.health.proven + ok)

    @staticmethod
    def _outcomes(record: _Record, now: float) -> tuple[float, float]:
        decay = math.exp(-(now - record.outcomes_at) / ERROR_MEMORY_S)
        return record.metrics.error_weight * decay, record.bad * decay

    @staticmethod
    def _count_latency(record: _Record, report: Report, latency_s: float, now: float) -> None:
        metrics = record.metrics
        elapsed = now - metrics.latency_at
        ttft, pace = metrics.ttft_s, metrics.s_per_token
        first = report.ttft_s if report.output_tokens else latency_s
        if first is not None:
            low = ttft is not None and first < ttft / 2
            ttft, record.ttft_low = latency.step(ttft, first, elapsed, low and record.ttft_low), low
        if report.output_tokens:
            sample = max(0.0, latency_s - (ttft or 0.0 if first is None else first)) / report.output_tokens
            low = pace is not None and sample < pace / 2
            pace, record.pace_low = latency.step(pace, sample, elapsed, low and record.pace_low), low
        if report.predicted_s:
            error = math.log(max(latency_s, 1e-3) / report.predicted_s)
            error = max(-RESIDUAL_MOST, min(RESIDUAL_MOST, error))
            record.residual += SIGMA_STEP * (error * error - record.residual)
        record.latencies[latency_bucket(latency_s)] += 1
        sigma = max(latency.SIGMA_MIN, math.sqrt(record.residual))
        record.metrics = replace(
            metrics, ttft_s=ttft, s_per_token=pace, sigma=sigma, latency_at=now,
            latency_samples=metrics.latency_samples + 1,
        )  # fmt: skip

    def _counters(self, record: _Record, now: float) -> Counters:
        weight, _ = self._outcomes(record, now)
        health, rate = record.health, record.metrics.error_rate
        return Counters(now, health.consecutive_failures, rate, weight, health.trips, probe=False)

    async def renew(self, lease_ids: Sequence[str], ttl_s: float) -> None:
        now = self._now()
        for lease_id in lease_ids:
            if self._expiry.get(lease_id, 0) > now:
                self._expiry[lease_id] = now + _ms(ttl_s)
                record = self._records[self._leases[lease_id].endpoint_id]
                if record.probe == lease_id:
                    record.probe_until = now + _ms(ttl_s)

    async def expire(self, limit: int = 1000) -> int:
        now = self._now()
        due = sorted(
            (at, self._leases[lease_id].endpoint_id, lease_id) for lease_id, at in self._expiry.items() if at <= now
        )[:limit]
        for _, _, lease_id in due:
            del self._expiry[lease_id]
            lease = self._leases[lease_id]
            lease.expired_at = now
            self._records[lease.endpoint_id].calls.pop(lease_id)
            for usage, _ in lease.charges:
                usage.release(lease_id)
            self._book(lease.accounts, reserved=-lease.cost, unsure=lease.cost)
        if due:
            self._leases = {i: held for i, held in self._leases.items() if self._known(i, now)}
        return len(due)

    def _known(self, lease_id: str, now: float) -> _Lease | None:
        """A lease. One that expired is kept for a day, so that a late report finds what to move."""
        lease = self._leases.get(lease_id)
        forgotten = lease is not None and lease.expired_at is not None and lease.expired_at <= now - KEPT_S
        return None if forgotten else lease

    # --- health ------------------------------------------------------------------------------------------

    async def trip(self, endpoint_id: str, open_s: float, reason: str) -> Health:
        now = self._now()
        record = self._record(endpoint_id)
        health = record.health
        if health.open_until <= now:
            health = replace(health, trips=ejections_in_a_row(health, now) + 1)
        until = max(health.open_until, now + _ms(open_s))
        record.health = replace(health, open_until=until, reason=reason)
        record.probe, record.probe_until = "", 0.0
        return record.health

    async def recover(self, endpoint_id: str) -> Health:
        now = self._now()
        record = self._record(endpoint_id)
        if circuit(record.health, now) is Circuit.HALF_OPEN:
            record.health = replace(record.health, recovered_at=now, proven=0, consecutive_failures=0)
            record.probe, record.probe_until = "", 0.0
            record.bad, record.metrics = 0.0, replace(record.metrics, error_rate=0.0, error_weight=0.0)
        return replace(record.health, probing=record.probe_until > now)

    async def block(self, endpoint_ids: Sequence[str], for_s: float, reason: str) -> None:
        now = self._now()
        for record in map(self._record, endpoint_ids):
            health = record.health
            if health.blocked_until <= now:  # once a cooldown, however many calls ran into it
                record.share = max(SQUEEZE_LEAST, squeezed(record.share, health.blocked_until, now) * SQUEEZE)
            until = max(health.blocked_until, now + _ms(for_s))
            record.health = replace(health, blocked_until=until, reason=reason)

    async def disable(self, endpoint_ids: Sequence[str], reason: str) -> None:
        for record in map(self._record, endpoint_ids):
            record.health = replace(record.health, disabled=reason)

    async def isolate(self, endpoint_ids: Sequence[str], reason: str) -> None:
        for record in map(self._record, endpoint_ids):
            record.health = replace(record.health, isolated=True, reason=reason)

    async def restore(self, endpoint_ids: Sequence[str]) -> None:
        for record in map(self._record, endpoint_ids):
            record.health, record.share = Health(), 1.0
            record.probe, record.probe_until = "", 0.0
            record.bad, record.metrics = 0.0, replace(record.metrics, error_rate=0.0, error_weight=0.0)

    # --- money, load and state -----------------------------------------------------------------------------

    async def mark_duplicate(self, accounts: Sequence[str], cost_microusd: int) -> None:
        self._book(accounts, duplicate=cost_microusd)

    async def accounts(self, names: Sequence[str]) -> Mapping[str, Account]:
        return {name: self._money.get(name, Account()) for name in names}

    async def forget(self, accounts: Sequence[str]) -> None:
        for name in accounts:
            self._money.pop(name, None)
            self._ceilings.pop(name, None)

    async def publish(self, worker: str, waiting: Mapping[str, int], overdue: Mapping[str, int]) -> None:
        self._published[worker] = (self._now(), dict(waiting), dict(overdue))

    async def set_shadow_prices(self, prices: Mapping[str, float]) -> None:
        for endpoint_id, price in prices.items():
            self._record(endpoint_id).shadow_price = price

    async def state(self) -> tuple[float, Mapping[str, EndpointState]]:
        now = self._now()
        waiting, overdue = Counter[str](), Counter[str]()
        for at, jobs, calls in self._published.values():
            if at + PUBLISHED_S > now:
                waiting.update(jobs)
                overdue.update(calls)
        return now, {
            endpoint_id: EndpointState(
                replace(record.health, probing=record.probe_until > now),
                replace(record.metrics, error_weight=self._outcomes(record, now)[0]),
                self._load(record, now, waiting[endpoint_id], overdue[endpoint_id]),
                tuple(record.latencies),
            )
            for endpoint_id, record in self._records.items()
        }

    @staticmethod
    def _load(record: _Record, now: float, waiting: int, overdue: int) -> Load:
        calls = record.calls.values()
        return Load(
            in_flight=len(calls),
            overdue=overdue,
            oldest_started_at=min((lease.at for lease in calls), default=0.0),
            free=free_share(record.free, now - record.free_at, len(calls), record.slots),
            ready_at=record.ready_at if record.ready_at > now else 0.0,
            waiting=waiting,
            shadow_price=record.shadow_price,
        )


def _ms(seconds: float) -> float:
    """Rounded to whole milliseconds, as the clock is."""
    return round(seconds * 1000) / 1000
