"""What waits, what is at work and what it has cost: the same figures for the terminal, Prometheus and Flower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from turnout.ledger import Call, Keys
from turnout.request import MICROUSD_PER_USD, Lane

KINDS = ("spent", "reserved", "unsure", "duplicate")


def reads(keys: Keys) -> list[Call[Any]]:
    """What to ask Redis, in one round trip; `told` makes sense of the replies."""
    return [
        *(Call(("ZCARD", keys.pending(lane)), int) for lane in Lane),
        *(Call(("ZLEXCOUNT", keys.in_line, f"[{lane} ", f"({lane}!"), int) for lane in Lane),
        *(Call(("LLEN", keys.queue(lane)), int) for lane in Lane),
        *(Call(("ZRANGE", keys.pending(lane), 0, 0, "WITHSCORES"), _oldest) for lane in Lane),
        Call(("ZCARD", keys.leases), int),
        Call(("ZCARD", keys.parked), int),
        Call(("HGETALL", keys.counts), _counts),
        Call(("HMGET", keys.money, *(f"total|{kind}" for kind in KINDS)), lambda sums: [int(sum or 0) for sum in sums]),
    ]


def told(replies: Sequence[Any], now: float) -> dict[str, Any]:
    """Plain values. `now`: Redis's time, for the age of what waits longest."""
    lanes = len(Lane)
    pending, behind, messages, oldest = (replies[n * lanes : (n + 1) * lanes] for n in range(4))
    queued = [published + waiting for published, waiting in zip(pending, behind, strict=True)]  # for their turn
    held, parked, counts, money = replies[4 * lanes :]
    return {
        "lanes": {
            lane.value: {"queued": q, "messages": m, "oldest_s": round(max(0.0, now - since), 1) if since else 0.0}
            for lane, q, m, since in zip(Lane, queued, messages, oldest, strict=True)
        },
        "held": held,
        "parked": parked,
        "counts": counts,
        "money_usd": {kind: value / MICROUSD_PER_USD for kind, value in zip(KINDS, money, strict=True)},
    }


def _oldest(reply: Any) -> float | None:
    """When the lane's first job was queued (s); RESP2 and RESP3 nest the reply differently."""
    if not reply:
        return None
    score = reply[0][1] if isinstance(reply[0], list | tuple) else reply[1]
    return float(score) / 1000


def _counts(reply: Any) -> dict[str, int]:
    pairs = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
    return {name.decode(): int(count) for name, count in pairs}
