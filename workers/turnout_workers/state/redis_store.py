"""The fleet store in Redis: every operation is one Lua script, so it is atomic and takes one round trip.

`memory_store.py` specifies what the scripts do; the tests add what only workers use.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any, TypeVar

from pydantic import TypeAdapter
from pydantic_core import to_json

from turnout.ledger import Coalescer, Keys, Operation, Script
from turnout.ledger.operations import nothing, texts
from turnout.ledger.script import CLOCK, sources
from turnout_workers.routing import health, latency
from turnout_workers.routing.fleet import UNLIMITED, Observed, account_id
from turnout_workers.routing.health import Counters
from turnout_workers.state import record, store, windows
from turnout_workers.state.record import TEXTS, unpacked
from turnout_workers.state.store import Account, Admission, Ask, Fenced, Granted, Mark, NoRoom, Report, ms
from turnout_workers.state.windows import Use

T = TypeVar("T")

KINDS = ", ".join(
    f"{{'{name}', '{kind.window}', {', '.join(str(1 + Use._fields.index(counter)) for counter in kind.counters)}}}"
    for name, kind in windows.KINDS.items()
)
"""For Lua: the name of each limit, its window, and which of the three counters it adds up."""
POLICY = {
    windows: ("PACED_S", "SQUEEZE", "MIN_SQUEEZE", "SQUEEZE_HOLD_S", "SQUEEZE_REGROWTH", "SLOTS_REGROWTH", "CREDIT_S"),
    store: ("ASK_AGAIN_S", "VERDICT_S", "PUBLISHED_S", "KEEP_IF_WITHIN_S", "KEEP_FOR_S", "ANNOUNCED_LIMIT_S"),
    health: ("RAMP_S", "RAMP_EXCESS", "WELL_S", "CONSECUTIVE_FAILURES", "ERROR_MEMORY_S"),
    latency: ("MEMORY_S", "STEP_SLOWER", "STEP_FASTER", "STEP_RELIEF", "SIGMA_STEP", "MAX_RESIDUAL", "CACHED_STEP"),
}
"""Constants that Lua needs, prepended to every script, so that each is defined once, in Python."""
CONSTANTS = f"""
local KINDS = {{{KINDS}}}
local MINUTE = {{width = {windows.MINUTE[0]}, span = {windows.MINUTE[1]}}}
local DAY = {{width = {windows.DAY[0]}, span = {windows.DAY[1]}}}
local MAX_RESET_S = {{{", ".join(f"{window} = {most_s}" for window, most_s in windows.MAX_RESET_S.items())}}}
""" + "".join(f"local {name} = {getattr(home, name)}\n" for home, names in POLICY.items() for name in names)
SHARED = CONSTANTS + record.LUA + sources("turnout_workers.state")["shared"]

COLUMNS = tuple(Account.__dataclass_fields__)
ASK, REPORT = TypeAdapter(Ask), TypeAdapter(Report)


class RedisFleetStore:
    """Sends its operations through `send`. `clock` is the Lua that defines `now_ms()`."""

    def __init__(self, send: Coalescer, keys: Keys, clock: str = CLOCK) -> None:
        self._send = send.uninterrupted
        self._keys = keys
        self._prelude = clock + SHARED

    def _run(
        self,
        name: str,
        keys: Iterable[str],
        args: Iterable[Any],
        decode: Callable[[Any], T],
        *,
        repeatable: bool = False,
    ) -> Awaitable[T]:
        script = Script.load("turnout_workers.state", name, self._prelude)
        return self._send(script.operation(keys, args, decode, repeatable=repeatable))

    def _lease_keys(self) -> tuple[str, ...]:
        """The first keys of the scripts that begin and end leases."""
        return (self._keys.endpoints, self._keys.money, self._keys.call_lease_ends)

    async def admit(self, ask: Ask) -> Admission:
        keys = [*self._lease_keys(), self._keys.call_lease(ask.lease_id), self._keys.ceilings]
        for bid in ask.bids:
            keys += _usage_keys(self._keys, bid.endpoint_id, bid.shared_limits != UNLIMITED)
        if ask.fence:
            batch = [self._keys.batch(ask.fence.batch)] if ask.fence.batch else []
            keys += [*batch, self._keys.job(ask.fence.job_id), self._keys.story(ask.fence.job_id)]
        args = [ASK.dump_json(ask, exclude_defaults=True, exclude_none=True)]
        return await self._run("admit", keys, args, lambda r: _admission(ask.lease_id, r), repeatable=True)

    async def report(self, report: Report) -> Counters:
        endpoint, lease = report.endpoint_id, self._keys.call_lease(report.lease_id)
        keys = (*self._lease_keys(), lease, self._keys.latencies, *_usage_keys(self._keys, endpoint, True))
        args = (REPORT.dump_json(report, exclude_none=True), latency.bucket(report.latency_s or 0.0))
        return await self._run("report", keys, args, _counters)

    async def renew(self, lease_ids: Sequence[str], ttl_s: float) -> None:
        if lease_ids:
            keys = (self._keys.endpoints, self._keys.call_lease_ends, *map(self._keys.call_lease, lease_ids))
            await self._run("renew", keys, (ms(ttl_s), *lease_ids), nothing)

    async def expire(self, limit: int = 1000) -> int:
        listing = Script.load("turnout.ledger", "members_due", self._prelude)  # `expire` must declare their keys
        due = await self._send(listing.operation([self._keys.call_lease_ends], [limit], texts))
        if not due:
            return 0
        keys = list(self._lease_keys())
        for member in due:
            endpoint, lease = member.split(" ", 1)
            keys += [
                self._keys.call_lease(lease),
                self._keys.call_starts(endpoint),
                self._keys.call_starts(account_id(endpoint)),
            ]
        return await self._run("expire", keys, due, int)

    async def eject(self, endpoint_id: str, open_s: float, reason: str) -> bool:
        return await self._run("eject", [self._keys.endpoints], [endpoint_id, ms(open_s), reason], bool)

    async def recover(self, endpoint_id: str) -> None:
        await self._run("recover", [self._keys.endpoints], [endpoint_id], nothing)

    async def mark(
        self,
        what: Mark,
        endpoint_ids: Sequence[str],
        reason: str = "",
        for_s: float = 0,
        begun_at: float | None = None,
    ) -> None:
        await self._send(mark_operation(self._keys, what, endpoint_ids, reason, for_s, begun_at, self._prelude))

    async def mark_duplicate(self, accounts: Sequence[str], cost_microusd: int) -> None:
        await self._run("duplicate", [self._keys.money], [cost_microusd, *accounts], nothing)

    async def forget(self, accounts: Sequence[str]) -> None:
        await self._run("forget", [self._keys.money, self._keys.ceilings], accounts, nothing)

    async def publish(self, worker: str, overdue: Mapping[str, int]) -> None:
        args = (worker, to_json(overdue) if overdue else "")
        await self._run("publish", [self._keys.hanging], args, nothing)

    async def claim_work(self, work: str, for_s: float) -> bool:
        return await self._send(Operation(("SET", self._keys.mutex(work), "taken", "NX", "PX", ms(for_s)), bool))

    async def overdue(self) -> Counter[str]:
        return await self._run("overdue", [self._keys.hanging], [], _counts)

    async def state(self) -> tuple[float, Mapping[str, Observed]]:
        return await self._send(state_operation(self._keys, self._prelude))


@lru_cache
def _usage_keys(keys: Keys, endpoint_id: str, shared: bool) -> tuple[str, ...]:
    """The keys in which a call to an endpoint is counted. shared: in those of its account, too."""
    names = (endpoint_id, account_id(endpoint_id)) if shared else (endpoint_id,)
    return tuple(key(name) for name in names for key in (keys.usage, keys.call_starts))


def mark_operation(
    keys: Keys,
    what: Mark,
    endpoint_ids: Sequence[str],
    reason: str = "",
    for_s: float = 0,
    begun_at: float | None = None,
    prelude: str = CLOCK + SHARED,
) -> Operation[None]:
    """See `FleetStore.mark`; also for an operator's commands."""
    script = Script.load("turnout_workers.state", "mark", prelude)
    args = [what, reason, ms(for_s), ms(begun_at or 0), *endpoint_ids]
    return script.operation([keys.endpoints, *map(keys.usage, endpoint_ids)], args, nothing)


def state_operation(keys: Keys, prelude: str = CLOCK + SHARED) -> Operation[tuple[float, Mapping[str, Observed]]]:
    """See `FleetStore.state`; also for commands that only look on."""
    script = Script.load("turnout_workers.state", "state", prelude)
    return script.operation([keys.endpoints], [], _state)


def latencies_operation(keys: Keys) -> Operation[Mapping[str, Sequence[int]]]:
    """Read how many answers took how long, by endpoint and `latency.bucket`. Only people want it, so it is apart from
    what workers read all the time."""

    def decode(reply: Mapping[bytes, bytes]) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for name, count in reply.items():
            endpoint, _, bucket = name.decode().rpartition(" ")
            found.setdefault(endpoint, [0] * latency.BUCKETS)[int(bucket)] = int(count)
        return found

    return Operation(("HGETALL", keys.latencies), decode)


def accounts_operation(keys: Keys, names: Sequence[str]) -> Operation[Mapping[str, Account]]:
    """Read what one or more accounts have spent; also for commands that only look on."""

    def decode(reply: Any) -> dict[str, Account]:
        sums = iter([int(one or 0) for one in reply])
        return {name: Account(*islice(sums, len(COLUMNS))) for name in names}

    return Operation(("HMGET", keys.money, *(f"{name}|{column}" for name in names for column in COLUMNS)), decode)


# --- what goes over the wire -------------------------------------------------------------------------------


def _admission(lease_id: str, reply: Any) -> Admission:
    match reply[0].decode():
        case "granted":
            return Granted(lease_id, reply[1].decode(), reply[2] / 1000, bool(reply[3]))
        case "fenced":
            return Fenced()
    _, now_ms, *full = reply
    obstacles = {endpoint.decode(): (None if until < 0 else until, reason.decode()) for endpoint, until, reason in full}
    return NoRoom.of(now_ms, obstacles)


def _counters(reply: Any) -> Counters:
    now, consecutive, as_begun, rate, weight, probe = reply
    return Counters(now / 1000, consecutive, as_begun, float(rate), float(weight), bool(probe))


def _state(reply: Any) -> tuple[float, dict[str, Observed]]:
    now_ms, fields = reply
    kept = dict(zip(map(bytes.decode, fields[::2]), fields[1::2], strict=True))
    return now_ms / 1000, {
        id: unpacked(packed).observed(
            now_ms, {name: kept[key].decode() for name in TEXTS if (key := f"{id} {name}") in kept}
        )
        for id, packed in kept.items()
        if " " not in id
    }


def _counts(by_worker: list[bytes]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for published in by_worker:
        counts.update(json.loads(published))
    return counts
