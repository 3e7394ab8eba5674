"""Requests that only a Celery message holds."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from turnout.ledger import Enqueued, Intake, Ledger
from turnout_workers import foreign


async def test_a_request_that_came_while_redis_is_away_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "AGAIN_S", 0)
    replies: list[Any] = [redis.ConnectionError("away"), redis.TimeoutError("slow"), Enqueued(Intake.QUEUED, "queued")]

    class Away:
        async def whole(self, _: object) -> Any:
            reply = replies.pop(0)
            if isinstance(reply, Exception):
                raise reply
            return reply

    nothing: Any = None
    call: Any = Away()
    taken = foreign.Foreign(Ledger(), call, nothing)
    assert await taken.accept("a", {"prompt": "Why?"}, {}) is None
    assert not replies
