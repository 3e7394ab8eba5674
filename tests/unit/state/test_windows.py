"""The window never lets a span of its length hold more than the limit, and tells when there is room."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from turnout_workers.state.windows import KINDS, Use, Window, squeezed

REQUESTS = KINDS["requests_per_minute"]


@given(st.lists(st.integers(0, 900), min_size=1, max_size=200), st.integers(1, 5))
def test_no_span_holds_more_than_the_limit(gaps_ms: list[int], limit: int) -> None:
    window, now, granted = Window(100, 10), 5_000, []
    for gap in gaps_ms:
        now += gap
        window.roll(now)
        if window.used.requests < limit:
            window.add(Use(1))
            granted.append(now)
    assert all(later - earlier > 1000 for earlier, later in zip(granted, granted[limit:], strict=False))


@given(st.lists(st.integers(0, 900), min_size=1, max_size=50), st.integers(1, 5))
def test_room_comes_exactly_when_it_was_promised(gaps_ms: list[int], limit: int) -> None:
    window, now = Window(100, 10), 5_000
    for gap in gaps_ms:
        now += gap
        window.roll(now)
        window.add(Use(1))
    promised = window.room_at(REQUESTS, lambda used: used < limit)
    assert promised is not None
    if promised:
        window.roll(promised - 1)
        assert window.used.requests >= limit
        window.roll(promised)
        assert window.used.requests < limit


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=200), st.sampled_from([0.3, 1.0, 2.5]))
def test_no_span_holds_more_than_its_pace_gives_and_one_call_besides(gaps_ms: list[int], rate: float) -> None:
    window, now, granted = Window(1000, 60), 5_000_000, []
    for gap in gaps_ms:
        now += gap
        window.roll(now)
        if window.unpaced(REQUESTS, rate, 0) < rate:
            window.add(Use(1))
            granted.append(now // 1000)
    for index, first in enumerate(granted):
        for calls, last in enumerate(granted[index:], 1):
            assert calls <= (last - first + 1) * rate + 1 + 1e-9


def test_a_clock_that_goes_back_stays_in_the_newest_bucket() -> None:
    window = Window(1000, 60)
    window.roll(100_000)
    window.add(Use(1))
    window.roll(40_000)
    assert (window.newest, window.used) == (100, Use(1))


def test_a_clock_that_goes_back_further_than_the_window_begins_it_anew() -> None:
    window = Window(1000, 60)
    window.roll(100_000)
    window.add(Use(1))
    window.roll(39_000)
    assert (window.newest, window.used) == (39, Use())
    window.correct(100, Use(0, -5))
    assert window.used == Use()


def test_a_squeezed_limit_holds_and_then_grows_back() -> None:
    shares = [squeezed(0.7, 100_000, now) for now in (90_000, 105_000, 110_000, 112_500, 200_000)]
    assert [round(share, 3) for share in shares] == [0.7, 0.7, 0.9, 1.0, 1.0]
