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
    """Limit on what an account may cost. No admission lets spent + reserved + unsure exceed it."""

    account: str
    """`job:ID`, `batch:ID`, `tenant:NAME@2030-01-31`, `provider:NAME@2030-01` …: one name per period."""
    limit_microusd: int | None
    """None: the limit that the batch's producer set, if any. The account is kept in either case."""


@dataclass(frozen=True, slots=True)
class Bid:
    """One ranked candidate, with what this job would take from it."""

    endpoint_id: str
    limits: Limits
    """Of this endpoint only."""
    input_tokens: int
    """Upper estimate, charged at admission and corrected by the report."""
    output_tokens: int
    cost_microusd: int | None
    """Upper estimate. None: the price is unknown, so no ceiling leaves enough."""
    ceilings: tuple[Ceiling, ...] = ()
    """Ceilings of this provider, in addition to the job's."""
    shared_limits: Limits = UNLIMITED
    """Of the whole account (`account_id`): what its other models use counts, too."""

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
    """Ties the admission to a claimed job, whose story records it. Refused unless `token` is the job's current one."""

    job_id: str
    token: int
    batch: str | None = None
    """The job's batch. While it is paused, there is no room."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A request to make one call, to the first of `bids` that has room."""

    lease_id: str
    """Unique to this attempt, `JOB:TOKEN:CALL`."""
    bids: tuple[Bid, ...]
    ttl_s: float
    """The lease expires unless it is renewed within this time."""
    ceilings: tuple[Ceiling, ...] = ()
    fence: Fence | None = None
    headroom: float = 1.0
    """Share of each limit that this job may fill. The rest is reserved for more urgent lanes and other tenants."""
    position: float | None = None
    """Among all jobs that want room. The smallest comes first; those after it leave free what is kept for it. None:
    this one needn't."""
    keeps_room: bool = False
    """Whether room is kept for this job if it finds none. Otherwise small jobs would take it bit by bit, and a large
    one would wait forever."""


@dataclass(frozen=True, slots=True)
class Granted:
    lease_id: str
    endpoint_id: str
    at: float
    probe: bool = False
    """Whether this call is the one probe of a half-open endpoint: its outcome closes or reopens the circuit."""


CEILING = "ceiling "
"""Prefix of a bid's reason, if an account's ceiling refuses it."""


@dataclass(frozen=True, slots=True)
class NoRoom:
    retry_at: float | None
    """When the first candidate will have room. None: only an operator or a higher ceiling can help."""
    at: float
    reasons: Mapping[str, str]
    """By endpoint id: what was full."""
    over_ceiling: Mapping[str, str] = field(default_factory=dict)
    """By endpoint id, where a call may cost more than a ceiling leaves: whose ceiling it is, the account."""

    @classmethod
    def of(cls, now_ms: int, obstacles: Mapping[str, tuple[float | None, str]]) -> NoRoom:
        """From each bid's longest obstacle: until when it lasts (ms; None: time won't help), and what it is."""
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
    """What a provider announced: a limit, what remains of it and when it refills."""

    kind: str
    """A field of `Limits`."""
    limit: int | None = None
    remaining: int | None = None
    reset_s: float | None = None
    """Time from the call's begin until the limit is full again."""


@dataclass(frozen=True, slots=True)
class Report:
    """How a leased call went."""

    lease_id: str
    endpoint_id: str
    ok: bool
    counts: bool = True
    """Whether it says anything about the endpoint's health. A 429 or a fault of the job doesn't."""
    input_tokens: int = 0
    """Those that count against the endpoint's limits."""
    output_tokens: int = 0
    cached_share: float | None = None
    """Share of all input tokens that the provider had in its cache; None: there was no input, or nothing is known."""
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
    """The part of `spent` that paid for answers to jobs already settled."""


ASK_AGAIN_S = 0.25
"""How long to wait for what has no known end: a call in flight, a probe, money that another call reserved."""
VERDICT_S = 2.0
"""How long a reported probe keeps other calls out, until `eject` or `recover` arrives."""
PUBLISHED_S = 3.0
"""How long a worker's published counts hold."""
ANNOUNCED_LIMIT_S = 3600.0
"""How long a limit that a provider announced holds. Most announce it with each answer; Gemini only when it is exceeded,
and never when it is raised."""
KEEP_IF_WITHIN_S = 75.0
"""Room is kept for the first waiting job only if it is expected within this time; a per-minute limit always is."""
KEEP_FOR_S = 90.0
"""How long room is kept for a job that doesn't ask again: its longest wait, plus jitter."""


Mark = Literal["cooldown", "disabled", "isolated", "restored"]


def ms(seconds: float) -> int:
    return round(seconds * 1000)


class FleetStore(Protocol):
    """What routers share. Every method is atomic, and none is cancelled halfway."""

    async def admit(self, ask: Ask) -> Admission:
        """Lease the first bid that has room, or say when one will."""

    async def report(self, report: Report) -> Counters:
        """End a lease: free its slot, correct tokens and money to what was used, count the outcome."""

    async def expire(self, limit: int = 1000) -> int:
        """End leases that have run out: their reservations become unsure. Returns how many."""

    async def eject(self, endpoint_id: str, open_s: float, reason: str) -> bool:
        """Open the circuit until max(old, now + open_s). False: it was open already, so this isn't counted again."""

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
        """Set a state that no circuit decides. `cooldown`: until max(old, now + for_s), as the provider asked.
        `disabled`: it refuses our key or model. `isolated`: an operator took it out. `restored`: undo these and
        ejections.

        begun_at: when the refused call began, if not now. A call from before the last cooldown adds no squeeze.
        """

    async def publish(self, worker: str, overdue: Mapping[str, int]) -> None:
        """Publish how many of this worker's calls to each endpoint are overdue. Forgotten unless repeated within 3 s.

        Only the worker can tell: the calls of a dead worker stay in flight as long as their leases last.
        """

    async def claim_work(self, work: str, for_s: float) -> bool:
        """Whether the caller is to do this work for all workers. If so, no other caller is for this long."""

    async def overdue(self) -> Counter[str]:
        """The overdue calls that all workers have published, by endpoint."""

    async def state(self) -> tuple[float, Mapping[str, Observed]]:
        """The store's time, and everything observed, by endpoint id."""


class WorkersStore(FleetStore, Protocol):
    """What only workers need. Their asks may have ceilings and a fence."""

    async def renew(self, lease_ids: Sequence[str], ttl_s: float) -> None:
        """Prolong the leases that haven't expired."""

    async def mark_duplicate(self, accounts: Sequence[str], cost_microusd: int) -> None:
        """Book a call whose result came after its job was settled. It is already spent; now it is also duplicate."""

    async def forget(self, accounts: Sequence[str]) -> None:
        """Drop accounts that nothing needs any more, such as those of deleted batches, and their ceilings.

        Calls still in flight, and results that come twice, are then booked only in their other accounts.
        """
