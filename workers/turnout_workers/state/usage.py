"""What calls have taken of the limits of an endpoint, or of a whole account, and whether there is room for another."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from turnout_workers.routing.fleet import Limits
from turnout_workers.state.store import ANNOUNCED_LIMIT_S, ASK_AGAIN_S, KEEP_FOR_S, ObservedLimit, ms
from turnout_workers.state.windows import DAY, KINDS, MAX_RESET_S, MINUTE, NOTHING, Kind, Use, Window

ASK_AGAIN_MS = ms(ASK_AGAIN_S)


class Obstacle(NamedTuple):
    """What keeps a bid from being admitted, and until when (ms); None: time alone won't help."""

    until: float | None
    reason: str


class Room(NamedTuple):
    """What the scarcest of some limits have left."""

    free: float = 1.0
    """Share of it."""
    ready_at: int = 0
    """When (ms) there is room for a call of this size; 0: now."""
    fits: float = math.inf
    """Tokens for which there is room before."""

    def with_less(self, other: Room) -> Room:
        return Room(min(self.free, other.free), max(self.ready_at, other.ready_at), min(self.fits, other.fits))

    def until(self, at: int, kind: Kind, left: float) -> Room:
        """Where this limit is full until then, and has so much left for smaller calls."""
        return self.with_less(Room(1.0, at, 0 if kind.counters == ("requests",) else left))


@dataclass(frozen=True, slots=True)
class Charge:
    """What one call took, and where it was booked."""

    use: Use
    buckets: tuple[int, ...]
    total: Use
    """All that was ever charged, including this, and never corrected: ties what headers say to a moment."""


@dataclass(frozen=True, slots=True)
class _Cap:
    """`remaining` of a provider's header, as the total of charges that must not be passed until a time."""

    total: int
    until: int
    charged_at_admission: int
    """Total of charges when the call was admitted that brought the header: later news replaces earlier."""


class FirstWaiting(NamedTuple):
    """The first of those that wait for room, and when (ms) it asked last."""

    position: float
    need: Use
    at: int


class Usage:
    def __init__(self) -> None:
        self._windows = {"minute": Window(*MINUTE), "day": Window(*DAY)}
        self._charged = NOTHING
        self._announced: dict[str, tuple[int, int]] = {}
        """Limits as the provider has told them, and until when they hold."""
        self._caps: dict[str, _Cap] = {}
        self.calls: dict[str, int] = {}
        """Those in flight, by lease: since when (ms)."""
        self._first: FirstWaiting | None = None

    def roll(self, now: int) -> None:
        for window in self._windows.values():
            window.roll(now)

    def room(
        self, limits: Limits, need: Use, share: float, headroom: float, position: float | None, now: int
    ) -> tuple[Room, list[Obstacle]]:
        """What room there is, and what is in the way.

        share: of the rate limits, what is in force. headroom: of all limits, what this job may fill. place: see `Ask`.
        After `roll`.
        """
        found, room, first = [], Room(), self._first_at(now)
        ahead = first.need if first and position is not None and first.position < position else NOTHING
        slots = limits.concurrency
        if slots is not None and len(self.calls) >= min(slots, max(1, math.floor(slots * headroom))):
            found.append(Obstacle(now + ASK_AGAIN_MS, "concurrency"))
        for name, kind in KINDS.items():
            told, told_until = self._announced.get(name, (None, 0))
            believed = told if told_until > now else None
            known = [limit for limit in (getattr(limits, name), believed) if limit is not None]
            amount = kind.of(need)
            if not amount:
                continue
            cap = self._caps.get(name)
            if cap and cap.until > now and kind.of(self._charged) + amount > cap.total:
                found.append(Obstacle(cap.until, name))
                room = room.until(cap.until, kind, cap.total - kind.of(self._charged))
            if not known:
                continue
            limit = min(known) * share
            window = self._windows[kind.window]
            used = kind.of(window.used)
            kept = kind.of(ahead) if kind.window == "minute" else 0
            room = room.with_less(Room(max(0.0, 1 - used / max(limit, 1))))
            at = window.room_at(kind, _fits(amount, limit * headroom, kept))
            if at != 0:
                found.append(Obstacle(at, name))
                if (at := window.room_at(kind, _fits(amount, limit))) != 0:  # for whoever comes first
                    room = room.until(at, kind, limit - used)
        return room, found

    def keep_room(self, position: float, need: Use, now: int) -> None:
        """For a job that has found none, unless one before it waits."""
        if (first := self._first_at(now)) is None or position <= first.position:
            self._first = FirstWaiting(position, need, now)

    def keep_none(self, position: float | None) -> None:
        """The job has found room, here or elsewhere."""
        if self._first and self._first.position == position:
            self._first = None

    def _first_at(self, now: int) -> FirstWaiting | None:
        """Unless it asks no more, or the clock went back."""
        return self._first if self._first and 0 <= now - self._first.at < ms(KEEP_FOR_S) else None

    @property
    def this_second(self) -> tuple[int, int]:
        """Its number, and the calls that it has had. After `roll`."""
        minute = self._windows["minute"]
        return minute.newest, minute.buckets.get(minute.newest, NOTHING).requests

    def charge(self, lease_id: str, use: Use, now: int) -> Charge:
        """Begin a call. After `roll`."""
        self._charged = self._charged.plus(use)
        self.calls[lease_id] = now
        buckets = tuple(window.add(use) for window in self._windows.values())
        return Charge(use, buckets, self._charged)

    def release(self, lease_id: str) -> None:
        """The call holds no place any more."""
        self.calls.pop(lease_id, None)

    def correct(self, charge: Charge, real: Use) -> None:
        """Set a charge right, in the buckets in which it was made. A request stays a request."""
        for window, bucket in zip(self._windows.values(), charge.buckets, strict=True):
            window.correct(bucket, real.minus(charge.use))

    def learn_from_headers(self, charge: Charge, observed: ObservedLimit, now: int) -> None:
        """Take over what a provider says. `remaining` counted this call, and perhaps not those after it: so it
        caps the total of charges, and only until the reset."""
        if observed.limit is not None:
            self._announced[observed.kind] = observed.limit, now + ms(ANNOUNCED_LIMIT_S)
        if observed.remaining is None or observed.reset_s is None or observed.kind not in KINDS:
            return
        kind = KINDS[observed.kind]
        told, until = kind.of(charge.total), now + ms(min(observed.reset_s, MAX_RESET_S[kind.window]))
        old = self._caps.get(observed.kind)
        if old is None or old.until <= now or told >= old.charged_at_admission:
            self._caps[observed.kind] = _Cap(told + observed.remaining, until, told)

    def forget_headers(self) -> None:
        """What the provider has said of its limits."""
        self._announced, self._caps = {}, {}


def _fits(amount: int, limit: float, kept: int = 0) -> Callable[[int], bool]:
    """Room for `amount` more: within `limit`, or alone in the window. So reserves and squeezes delay a large job and
    never shut it out; and of one whose estimate is larger than the limit the provider has the last word."""
    return lambda used: used + amount + kept <= limit or used + kept == 0
