"""Webhooks, as both sides need them: how a message is signed, and whether one that came in is Turnout's. Pure.

The scheme is that of the Standard Webhooks specification, so that any library of it does as well.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Mapping

from turnout.result import JobResult

TOLERANCE_S = 300.0
"""Most that a message's time may differ from ours, so that an overheard one can't be sent again later."""


class NotSigned(ValueError):
    """A message that is not Turnout's, or too old. Answer it with status 401."""


def signature(secret: str, message_id: str, at: int, body: bytes) -> str:
    """The value of `webhook-signature`. secret: base64, with `whsec_` before it; at: Unix time."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.digest(key, f"{message_id}.{at}.".encode() + body, hashlib.sha256)
    return "v1," + base64.b64encode(digest).decode()


def verified(body: bytes, headers: Mapping[str, str], secret: str, now: float | None = None) -> JobResult:
    """The job that a webhook tells of. The same one may come more than once: go by its id.

    body: as it came, not parsed. headers: of the request, whose names any framework finds in any case. now: Unix time.
    Raises NotSigned.
    """
    try:
        message_id, signatures = headers["webhook-id"], headers["webhook-signature"]
        at = int(headers["webhook-timestamp"])
    except (KeyError, ValueError):
        raise NotSigned("webhook-id, webhook-timestamp or webhook-signature is missing or malformed") from None
    if abs((time.time() if now is None else now) - at) > TOLERANCE_S:
        raise NotSigned(f"webhook-timestamp is more than {TOLERANCE_S:.0f} s from now")
    expected = signature(secret, message_id, at, body).encode()
    # Several, while the secret is being changed.
    if not any(hmac.compare_digest(expected, one.encode()) for one in signatures.split(" ")):
        raise NotSigned("webhook-signature is not of this secret")
    return JobResult.model_validate(json.loads(body)["data"])
