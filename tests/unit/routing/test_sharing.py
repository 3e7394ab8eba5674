"""Fair shares of the rate limits."""

from __future__ import annotations

import pytest

from turnout_workers.routing.sharing import ACTIVE_S, RESERVE_FOR_OTHERS, TenantShares


def test_a_tenant_that_is_alone_may_use_all_there_is() -> None:
    shares = TenantShares()
    shares.count("loud", 0.0, 1000)
    assert shares.headroom("loud", 1.0) == 1.0


def test_one_that_had_more_than_its_share_leaves_room_while_another_takes_part() -> None:
    shares = TenantShares()
    shares.count("loud", 0.0, 1000)
    shares.count("quiet", 1.0)
    assert shares.headroom("loud", 1.0) == 1 - RESERVE_FOR_OTHERS
    assert shares.headroom("quiet", 1.0) == 1.0
    shares.count("loud", ACTIVE_S)
    assert shares.headroom("loud", 1.0 + ACTIVE_S) == 1.0


def test_a_call_that_is_repeated_after_a_long_while_is_of_a_tenant_that_takes_part() -> None:
    shares = TenantShares()
    shares.count("slow", 0.0, 1)
    assert shares.headroom("slow", ACTIVE_S) == 1.0
    shares.count("other", ACTIVE_S)
    assert shares.headroom("slow", 3 * ACTIVE_S) == 1.0


@pytest.mark.parametrize("tenants", [2, 5])
def test_with_more_work_than_room_all_come_to_have_equally_much(tenants: int) -> None:
    """A window of 100 calls, of which one empties at a time; who asks first is the one with most work."""
    shares, window, had = TenantShares(), ["t0"] * 100, dict.fromkeys((f"t{n}" for n in range(tenants)), 0)
    for name in had:
        shares.count(name, 0.0, 100 if name == "t0" else 0)
    for step in range(3000):
        now = step / 100 * 60 / 100
        window.pop(0)
        for name in had:
            if len(window) + 1 <= 100 * shares.headroom(name, now):
                shares.count(name, now, 1)
                window.append(name)
                had[name] += 1
                break
    assert min(had.values()) > 0.7 * max(had.values())
