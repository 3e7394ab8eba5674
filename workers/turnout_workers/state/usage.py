"""How much of an endpoint's or an account's limits calls have used, and whether there is room for another."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from turnout_workers.routing.fleet import Limits
from turnout_workers.state.store import ANNOUNCED_LIMIT_S, ASK_AGAIN_S, KEEP_FOR_S, ObservedLimit, ms
from turnout_workers.state.windows import DAY, KINDS, MAX_RESET_S, MINUTE, NOTHING, Use, Window

ASK_AGAIN_MS = ms(ASK_AGAIN_S)


class Obstacle(NamedTuple):
    """What keeps a bid from being admitted, and until when (ms). None: time alone won't help."""

    until: float | None
    reason: str


class Room(NamedTuple):
    """What the scarcest of several limits has left."""

    free: float = 1.0
    """Share of the limit."""
    ready_at: int = 0
    """When (ms) there is room for a call of this size. 0: now."""
    fits: float = math.inf
    """Tokens for which there is room before `ready_at`."""
    full: str = ""
    """The limit that has no room before `ready_at`."""

    def with_less(self, other: Room) -> Room:
        later = other if other.ready_at > self.ready_at else self
        return Room(min(self.free, other.free), later.ready_at, min(self.fits, other.fits), later.full)

    def until(self, at: int, name: str, left: float) -> Room:
        """With the limit of this name, which is full for this call until `at` and has `left` for smaller ones."""
        return self.with_less(Room(1.0, at, 0 if KINDS[name].counters == ("requests",) else left, name))


@dataclass(frozen=True, slots=True)
class Charge:
    """What one call took, and where it is counted."""

    use: Use
    buckets: tuple[int, ...]
    total: Use
    """Everything ever charged, this call included, never corrected. It dates what the call's headers say."""


@dataclass(frozen=True, slots=True)
class _Cap:
    """A header's `remaining`, as the total of charges that must not be exceeded before a time.

    The total grows: most providers refill a limit continuously, and its reset tells when it will be full.
    """

    total: int
    at: int
    """When (ms) the call that brought the header was admitted, which is when the provider counted."""
    per_ms: float
    """By how much the total grows."""
    until: int
    charged_at_admission: int
    """Total of charges when that call was admitted. Headers of later calls replace it."""

    def left(self, charged: int, now: int) -> float:
        """What may still be charged now, after so much."""
        return math.inf if self.until <= now else self.total + max(0, now - self.at) * self.per_ms - charged

    def room_at(self, total: int) -> int:
        """When (ms) so much may have been charged altogether."""
        grown_at = self.at + (total - self.total) / self.per_ms if self.per_ms else self.until
        return math.ceil(min(self.until, grown_at))


class Pace(NamedTuple):
    """How fast calls may follow one another: each second, as much as its part of the limits by the minute."""

    share: float
    """Of that part."""
    since: float
    """When (ms) the pace begins: earlier calls don't count."""
    slots: int | None = None
    """The most calls in flight where no limit by the minute is known."""


class FirstWaiting(NamedTuple):
    """The first job that waits for room, and when (ms) it last asked."""

    position: float
    need: Use
    at: int


class Usage:
    def __init__(self) -> None:
        self._windows = {"minute": Window(*MINUTE), "day": Window(*DAY)}
        self._charged = NOTHING
        self._announced: dict[str, tuple[int, int]] = {}
        """Limits that the provider announced, and until when (ms) they hold."""
        self._caps: dict[str, _Cap] = {}
        self.calls: dict[str, int] = {}
        """When (ms) each call in flight began, by lease."""
        self._first: FirstWaiting | None = None

    def roll(self, now: int) -> None:
        for window in self._windows.values():
            window.roll(now)

    def in_force(self, limits: Limits, now: int) -> Mapping[str, int]:
        """By name, the rate limits that are known: the stricter of what is configured and what was announced."""
        found = {}
        for name in KINDS:
            announced, until = self._announced.get(name, (None, 0))
            configured = getattr(limits, name)
            some = [one for one in (configured, announced if until > now else None) if one is not None]
            if some:
                found[name] = min(some)
        return found

    def room(
        self, limits: Limits, need: Use, pace: Pace | None, headroom: float, position: float | None, now: int
    ) -> tuple[Room, list[Obstacle]]:
        """How much room there is, and what is in the way. Call `roll` first.

        headroom: share of all limits that this job may fill. position: see `Ask`.
        """
        found, room, first = [], Room(), self._first_at(now)
        ahead = first.need if first and position is not None and first.position < position else NOTHING
        slots, in_force = limits.concurrency, self.in_force(limits, now)
        if pace and pace.slots is not None and not any(KINDS[name].window == "minute" for name in in_force):
            slots = pace.slots if slots is None else min(slots, pace.slots)
        if slots is not None and len(self.calls) >= min(slots, max(1, math.floor(slots * headroom))):
            found.append(Obstacle(now + ASK_AGAIN_MS, "concurrency"))
        for name, kind in KINDS.items():
            amount = kind.of(need)
            if not amount:
                continue
            cap = self._caps.get(name)
            charged = kind.of(self._charged)
            if cap and (left := cap.left(charged, now)) < amount:
                found.append(Obstacle(at := cap.room_at(charged + amount), name))
                room = room.until(at, name, left)
            if (limit := in_force.get(name)) is None:
                continue
            window = self._windows[kind.window]
            if pace and limit and kind.window == "minute":
                rate = pace.share * limit / window.span
                unpaced = window.unpaced(kind, rate, pace.since)
                if unpaced >= rate * headroom:
                    until = window.newest + math.floor(unpaced / rate - headroom) + 1
                    found.append(Obstacle(until * window.width_ms, f"pace of {name}"))
            used = kind.of(window.used)
            kept = kind.of(ahead) if kind.window == "minute" else 0
            room = room.with_less(Room(max(0.0, 1 - used / max(limit, 1))))
            at = window.room_at(kind, _fits(amount, limit * headroom, kept))
            if at != 0:
                found.append(Obstacle(at, name))
                if (at := window.room_at(kind, _fits(amount, limit))) != 0:  # what the first one gets
                    room = room.until(at, name, limit - used)
        return room, found

    def keep_room(self, position: float, need: Use, now: int) -> None:
        """Keep room for a job that found none, unless one ahead of it waits."""
        if (first := self._first_at(now)) is None or position <= first.position:
            self._first = FirstWaiting(position, need, now)

    def stop_keeping(self, position: float | None) -> None:
        """The job has found room, here or elsewhere."""
        if self._first and self._first.position == position:
            self._first = None

    def _first_at(self, now: int) -> FirstWaiting | None:
        """The first waiting job, unless it stopped asking or the clock went back."""
        return self._first if self._first and 0 <= now - self._first.at < ms(KEEP_FOR_S) else None

    def charge(self, lease_id: str, use: Use, now: int) -> Charge:
        """Count a call that begins. Call `roll` first."""
        self._charged = self._charged.plus(use)
        self.calls[lease_id] = now
        buckets = tuple(window.add(use) for window in self._windows.values())
        return Charge(use, buckets, self._charged)

    def release(self, lease_id: str) -> None:
        """The call is no longer in flight."""
        self.calls.pop(lease_id, None)

    def correct(self, charge: Charge, real: Use) -> None:
        """Correct a charge, in the buckets in which it was made. The request itself stays counted."""
        for window, bucket in zip(self._windows.values(), charge.buckets, strict=True):
            window.correct(bucket, real.minus(charge.use))

    def learn_from_headers(self, charge: Charge, at: int, observed: ObservedLimit, now: int) -> None:
        """Adopt what a provider's headers say of a call that was admitted at `at` (ms). `remaining` includes this call,
        but perhaps not later ones. So it caps the total of charges, and only until the reset."""
        if observed.limit is not None:
            self._announced[observed.kind] = observed.limit, now + ms(ANNOUNCED_LIMIT_S)
        if observed.remaining is None or observed.reset_s is None or observed.kind not in KINDS:
            return
        kind = KINDS[observed.kind]
        charged, until = kind.of(charge.total), at + ms(min(observed.reset_s, MAX_RESET_S[kind.window]))
        refill = max(0, (observed.limit or 0) - observed.remaining)
        per_ms = refill / (observed.reset_s * 1000) if observed.reset_s else 0.0
        old = self._caps.get(observed.kind)
        if old is None or old.until <= now or charged >= old.charged_at_admission:
            self._caps[observed.kind] = _Cap(charged + observed.remaining, at, per_ms, until, charged)

    def forget_headers(self) -> None:
        """Drop what the provider said about its limits."""
        self._announced, self._caps = {}, {}


def _fits(amount: int, limit: float, kept: int = 0) -> Callable[[int], bool]:
    """Room for `amount` more: within `limit`, or alone in the window. So reserves and squeezes delay a large job but
    never shut it out, and the provider decides on a job whose estimate exceeds the limit."""
    return lambda used: used + amount + kept <= limit or used + kept == 0
