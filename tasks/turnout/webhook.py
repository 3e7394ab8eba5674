"""Signatures of webhooks, by the Standard Webhooks specification: workers sign, receivers verify."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Iterable
from typing import Any, Protocol

from turnout.errors import TurnoutError

TOLERANCE_S = 300.0
"""A message older or newer than this is refused, so that an intercepted one can't be replayed much later."""


class BadSignature(TurnoutError):
    """The message is not from a worker that has the secret, or it is too old."""


class Headers(Protocol):
    """A framework's headers: a mapping, or Werkzeug's Headers, which aren't one."""

    def items(self) -> Iterable[tuple[str, str]]: ...


def signed(secret: str, message_id: str, at: int, body: bytes) -> dict[str, str]:
    """The headers of a message. `secret`: `whsec_` and base64; `at`: Unix time (s). Raises ValueError."""
    key = base64.b64decode(secret.strip().removeprefix("whsec_"), validate=True)
    if not key:  # anyone could sign with it
        raise ValueError("the secret is empty")
    signature = hmac.digest(key, f"{message_id}.{at}.".encode() + body, hashlib.sha256)
    return {
        "content-type": "application/json",
        "webhook-id": message_id,
        "webhook-timestamp": str(at),
        "webhook-signature": "v1," + base64.b64encode(signature).decode(),
    }


def verified(headers: Headers, body: bytes, secret: str | None, now: float | None = None) -> dict[str, Any]:
    """The message: `type` (`job.succeeded`, …), `timestamp`, and in `data` the job's result. Raises BadSignature.

    headers: as the framework has them. secret: None, for example from a variable that isn't set, refuses every message.
    A message may come twice: its `webhook-id` is the same each time.
    """
    # A sender may send anything, and frameworks pass on invalid text in various ways.
    fields = {name.lower(): value.encode(errors="replace").decode() for name, value in headers.items()}
    try:
        message_id, at = fields["webhook-id"], int(fields["webhook-timestamp"])
        signatures = fields["webhook-signature"].split()
    except (KeyError, ValueError):
        raise BadSignature("webhook-id, webhook-timestamp or webhook-signature is missing") from None
    if abs(round(time.time() if now is None else now) - at) > TOLERANCE_S:
        raise BadSignature("the message is too old, or a clock is wrong")
    try:
        expected = signed(secret or "", message_id, at, body)["webhook-signature"].encode()
    except ValueError:
        raise BadSignature("the secret to verify it with is missing, or is not whsec_ and base64") from None
    # As bytes: compare_digest takes only ASCII text, and the sender may send anything.
    if not any(hmac.compare_digest(one.encode(), expected) for one in signatures):
        raise BadSignature("the signature is not one of this secret")
    message: dict[str, Any] = json.loads(body)
    return message
