"""Sliding windows: how much of a rate limit is used, and when there will be room.

Time is cut into buckets, and a window counts one bucket more than its span. So no stretch of time as long as the span
ever holds more than the limit, whatever its offset. The cost is one bucket's length of idle capacity: 60 of 61 s in a
minute. Once the tokens that a call really took are known, its charge is corrected in the bucket where it was made.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

MINUTE = (1_000, 60)
"""Bucket length in ms, and buckets in the span."""
DAY = (900_000, 96)

MAX_RESET_S = {"minute": 600.0, "day": 86_400.0}
"""By window, the longest that a header's `remaining` is believed. Such limits refill in less, and an endpoint left idle
for longer would be hard to explain."""

PACED_S = 600.0
"""How long calls are paced after a cooldown. A provider that refuses calls may enforce a limit by the minute in each
second, or ten, or a limit that nobody knows. So each second takes no more than its part of a known limit; where none is
known, no more calls are in flight than the endpoint carried when it refused others."""
SQUEEZE = 0.7
"""Each cooldown multiplies the pace in force by this."""
MIN_SQUEEZE = 0.05
"""Smallest share of the full pace that cooldowns leave."""
SQUEEZE_HOLD_S = 5.0
"""How long after a cooldown the pace of known limits begins to grow back."""
SQUEEZE_REGROWTH = 0.04
"""Share of the full pace that grows back per second."""
SLOTS_REGROWTH = 0.2
"""Where no limit is known, the share of the calls in flight by which their number grows per second after a cooldown."""
CREDIT_S = 9
"""How many seconds' worth of tokens a pace carries over. A call is charged what it may take at most, and what it didn't
take comes back after its second is over: without credit, a pace of tokens would lose it."""


class Use(NamedTuple):
    """What calls take from rate limits."""

    requests: int = 0
    input: int = 0
    output: int = 0

    def plus(self, other: Use) -> Use:
        return Use(self.requests + other.requests, self.input + other.input, self.output + other.output)

    def minus(self, other: Use) -> Use:
        return Use(self.requests - other.requests, self.input - other.input, self.output - other.output)


NOTHING = Use()


@dataclass(frozen=True, slots=True)
class Kind:
    """A field of `Limits`: the window over which it counts, and what it counts."""

    window: str
    counters: tuple[str, ...]

    def of(self, use: Use) -> int:
        return sum(getattr(use, counter) for counter in self.counters)


KINDS = {
    "requests_per_minute": Kind("minute", ("requests",)),
    "tokens_per_minute": Kind("minute", ("input", "output")),
    "input_tokens_per_minute": Kind("minute", ("input",)),
    "output_tokens_per_minute": Kind("minute", ("output",)),
    "requests_per_day": Kind("day", ("requests",)),
    "tokens_per_day": Kind("day", ("input", "output")),
}


@dataclass
class Window:
    """The buckets of one window, and their sum."""

    width_ms: int
    span: int
    buckets: dict[int, Use] = field(default_factory=dict)
    used: Use = NOTHING
    newest: int = 0

    def roll(self, now_ms: int) -> None:
        """Drop the buckets that have left the window. If the clock went back, charges go to the newest bucket; if it
        went back by more than the window, all buckets are dropped."""
        bucket = now_ms // self.width_ms
        if bucket < self.newest - self.span:
            self.buckets, self.used, self.newest = {}, NOTHING, bucket
        self.newest = max(self.newest, bucket)
        for bucket in [b for b in self.buckets if b < self.newest - self.span]:
            self.used = self.used.minus(self.buckets.pop(bucket))

    def add(self, use: Use) -> int:
        """Charge it now. Returns the bucket."""
        self.buckets[self.newest] = self.buckets.get(self.newest, NOTHING).plus(use)
        self.used = self.used.plus(use)
        return self.newest

    def correct(self, bucket: int, error: Use) -> None:
        """Correct a charge in its bucket, unless that has left the window."""
        if bucket in self.buckets:
            self.buckets[bucket] = self.buckets[bucket].plus(error)
            self.used = self.used.plus(error)

    def room_at(self, kind: Kind, fits: Callable[[int], bool]) -> int:
        """When (ms) `fits(used)` will hold if nothing more is charged: at the latest when the window is empty."""
        used = kind.of(self.used)
        if fits(used):
            return 0
        for bucket in sorted(self.buckets):
            used -= kind.of(self.buckets[bucket])
            if fits(used):
                break
        else:  # room is kept for another job
            bucket = self.newest
        return (bucket + self.span + 1) * self.width_ms

    def unpaced(self, kind: Kind, per_bucket: float, since_ms: float) -> float:
        """By how much calls are ahead of a pace that began at `since_ms`, including the newest bucket's own part."""
        ahead, least = 0.0, 0.0 if kind.counters == ("requests",) else -CREDIT_S * per_bucket
        for bucket in range(max(self.newest - self.span, int(since_ms // self.width_ms)), self.newest):
            ahead = max(least, ahead + kind.of(self.buckets.get(bucket, NOTHING)) - per_bucket)
        return ahead + kind.of(self.buckets.get(self.newest, NOTHING))


def squeezed(share: float, cooldown_until_ms: float, now_ms: int) -> float:
    """Share of the full pace in force, if it was `share` when the cooldown ended."""
    since_s = (now_ms - cooldown_until_ms) / 1000
    return min(1.0, share + SQUEEZE_REGROWTH * max(0.0, since_s - SQUEEZE_HOLD_S))


def slots_after(carried: float, cooldown_until_ms: float, now_ms: int) -> int:
    """The most calls in flight where no limit is known, if the endpoint carried so many before a cooldown.

    It grows at once and fast: refusals may have nothing to do with load, such as those of one bad replica among many.
    A real limit then refuses a few calls per second.
    """
    since_s = max(0.0, (now_ms - cooldown_until_ms) / 1000)
    return math.floor(max(1.0, carried) + since_s * (1 + SLOTS_REGROWTH * carried))
