"""The port to what workers share: leases on capacity and money, and the health of every endpoint.

Two stores implement it and pass one conformance suite: `memory_store.py` for one process, and `redis_store.py`, which
also keeps what only workers need. The store counts and compares; policy is in `routing/`. A *lease* permits one call to
one endpoint. It holds a slot among the calls in flight, tokens of the rate limits and reserved money. It is reported on
once, or it expires; then its money counts as unsure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from turnout_workers.routing.decision import Candidate
from turnout_workers.routing.fleet import UNLIMITED, Limits, Observed
from turnout_workers.routing.health import Counters


@dataclass(frozen=True, slots=True)
class Ceiling:
    """Limit on what an account may cost: spent + reserved + unsure never passes it at admission."""

    account: str
    """`job:ID`, `batch:ID`, `tenant:NAME@2030-01-31`, `provider:NAME@2030-01` … : a name per period."""
    limit_microusd: int | None
    """None: the one that a batch's producer has set, if there is one; the account is kept in any case."""


@dataclass(frozen=True, slots=True)
class Bid:
    """One candidate of the ranked list, with what this job would take from it."""

    endpoint_id: str
    limits: Limits
    """Of the endpoint alone."""
    input_tokens: int
    """Upper estimate, charged now and corrected by the report."""
    output_tokens: int
    cost_microusd: int | None
    """Upper estimate; None: the price is unknown, so no ceiling leaves enough."""
    ceilings: tuple[Ceiling, ...] = ()
    """Those of this provider, besides the job's own."""
    shared_limits: Limits = UNLIMITED
    """Of the endpoint's whole account, `account_id`: what its other models use counts, too."""

    @classmethod
    def of(cls, candidate: Candidate, ceilings: tuple[Ceiling, ...] = ()) -> Bid:
        return cls(
            candidate.endpoint.id,
            candidate.endpoint.limits,
            candidate.input_tokens,
            candidate.output_tokens,
            candidate.upper_cost_microusd,
            ceilings,
            candidate.endpoint.shared_limits,
        )


@dataclass(frozen=True, slots=True)
class Fence:
    """Ties the admission to a claimed job: refused unless `token` is its current one, else told in its story."""

    job_id: str
    token: int
    batch: str | None = None
    """The job's; while it is paused, there is no room."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A wish to make one call, to the first of `bids` that has room."""

    lease_id: str
    """Unique to this attempt, `JOB:TOKEN:CALL`."""
    bids: tuple[Bid, ...]
    ttl_s: float
    """The lease expires unless renewed within this time."""
    ceilings: tuple[Ceiling, ...] = ()
    fence: Fence | None = None
    headroom: float = 1.0
    """Share of each limit that this job may fill, for the reserves of more urgent lanes and other tenants."""
    position: float | None = None
    """Among all that want room; the smallest comes first, and those after it leave what is kept for it. None: this one
    need not."""
    keeps_room: bool = False
    """Whether room is kept for this one if it finds none, for else small jobs would take it bit by bit, and a large one
    would wait for ever."""


@dataclass(frozen=True, slots=True)
class Granted:
    lease_id: str
    endpoint_id: str
    at: float
    probe: bool = False
    """This call is the one probe of a half-open endpoint: its outcome closes or reopens the circuit."""


CEILING = "ceiling "
"""Begins the reason of a bid that an account's ceiling stands against."""


@dataclass(frozen=True, slots=True)
class NoRoom:
    retry_at: float | None
    """When the first candidate will have room; None: only an operator or a higher ceiling can help."""
    at: float
    reasons: Mapping[str, str]
    """By endpoint id: what was full."""
    over_ceiling: Mapping[str, str] = field(default_factory=dict)
    """By endpoint id, where a call may cost more than a ceiling leaves: whose ceiling it is, the account."""

    @classmethod
    def of(cls, now_ms: int, obstacles: Mapping[str, tuple[float | None, str]]) -> NoRoom:
        """From what stands longest in each bid's way: until when (ms; None: time won't help), and what it is."""
        times = [until / 1000 for until, _ in obstacles.values() if until is not None]
        reasons = {endpoint_id: reason for endpoint_id, (_, reason) in obstacles.items()}
        over_ceiling = {
            endpoint_id: reason.removeprefix(CEILING)
            for endpoint_id, (until, reason) in obstacles.items()
            if until is None and reason.startswith(CEILING)
        }
        return cls(min(times, default=None), now_ms / 1000, reasons, over_ceiling)


@dataclass(frozen=True, slots=True)
class Fenced:
    """The job is no longer this worker's: make no call."""


Admission = Granted | NoRoom | Fenced


@dataclass(frozen=True, slots=True)
class ObservedLimit:
    """What a provider itself said: a limit, what remains of it and when it refills."""

    kind: str
    """A field of `Limits`."""
    limit: int | None = None
    remaining: int | None = None
    reset_s: float | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """How a leased call went."""

    lease_id: str
    endpoint_id: str
    ok: bool
    counts: bool = True
    """Whether it says anything on the endpoint's health (a 429 or the job's own fault doesn't)."""
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    """Those of the input that the provider had in its cache."""
    cost_microusd: int = 0
    """What is known to have been billed."""
    unsure_microusd: int = 0
    """What may have been billed."""
    latency_s: float | None = None
    ttft_s: float | None = None
    predicted_s: float | None = None
    limits: tuple[ObservedLimit, ...] = ()


@dataclass(frozen=True, slots=True)
class Account:
    """Money of one account, in micro-dollars."""

    spent: int = 0
    reserved: int = 0
    unsure: int = 0
    duplicate: int = 0
    """The part of `spent` that paid for what others had answered already."""


ASK_AGAIN_S = 0.25
"""Wait for what has no known end: a call in flight, a probe, money that another call has reserved."""
VERDICT_S = 2.0
"""After a probe's report the endpoint stays closed to others this long for `eject` or `recover` to follow."""
PUBLISHED_S = 3.0
"""How long a worker's counts hold."""
ANNOUNCED_LIMIT_S = 3600.0
"""How long a limit holds that a provider told. Most tell it with each answer; Gemini does only when it is exceeded, and
never says that it was raised."""
KEEP_IF_WITHIN_S, KEEP_FOR_S = 75.0, 90.0
"""Room is kept for the first of those that wait if it comes so soon, as that of a minute's limits does, and until it
should have asked again, with what is added to its wait."""


Mark = Literal["cooldown", "disabled", "isolated", "restored"]


def ms(seconds: float) -> int:
    return round(seconds * 1000)


class FleetStore(Protocol):
    """What routers share. Every method is atomic; none is cancelled half-way."""

    async def admit(self, ask: Ask) -> Admission:
        """Lease the first bid that has room, or say when one will have."""

    async def report(self, report: Report) -> Counters:
        """End a lease: free its place, correct tokens and money to what was used, count the outcome."""

    async def expire(self, limit: int = 1000) -> int:
        """End the leases whose time is over: their reservations become unsure. Returns how many."""

    async def eject(self, endpoint_id: str, open_s: float, reason: str) -> bool:
        """Open the circuit until max(old, now + open_s). False: it was open already, and this doesn't count twice."""

    async def recover(self, endpoint_id: str) -> None:
        """Close the circuit after a successful probe; the ramp starts now."""

    async def mark(
        self,
        what: Mark,
        endpoint_ids: Sequence[str],
        reason: str = "",
        for_s: float = 0,
        begun_at: float | None = None,
    ) -> None:
        """What no circuit decides. `cooldown`: a cooldown that the provider asked for, until max(old, now + for_s).
        `disabled`, `isolated` by an operator; `restored`: undo these, ejections and cooldowns.

        begun_at: when the refused call began, if not now: one from before the last cooldown tells no more than that.
        """

    async def publish(self, worker: str, overdue: Mapping[str, int]) -> None:
        """How many of this worker's calls to each endpoint are overdue. Forgotten unless repeated within 3 s.

        Nobody but the worker can tell: the calls of one that died are in flight for as long as their leases last.
        """

    async def claim_work(self, work: str, for_s: float) -> bool:
        """Whether it falls to the one who asks to do this work for all, and to nobody else for so long."""

    async def overdue(self) -> Counter[str]:
        """What all of them have published, by endpoint: for the one that ejects."""

    async def state(self) -> tuple[float, Mapping[str, Observed]]:
        """The store's time, and all that is known, by endpoint id."""


class WorkersStore(FleetStore, Protocol):
    """What workers need besides: an ask of theirs may have ceilings and a fence."""

    async def renew(self, lease_ids: Sequence[str], ttl_s: float) -> None:
        """Prolong the leases that have not expired."""

    async def mark_duplicate(self, accounts: Sequence[str], cost_microusd: int) -> None:
        """Book a call whose result came after the job was settled: spent already, now also duplicate."""

    async def forget(self, accounts: Sequence[str]) -> None:
        """Drop accounts that are of no interest any more, such as those of gone batches, and what was set for them.

        Calls that are still under way, and a result that comes twice, are booked in their other accounts alone.
        """
