"""What went wrong below HTTP: every exception of aiohttp, by what it means."""

from __future__ import annotations

import aiohttp

from turnout_workers.providers.scrub import scrubbed
from turnout_workers.routing.failure import Billed, Failure, FailureKind


def classify_exception(error: BaseException) -> Failure:
    """Of a call that is not known to have been answered."""
    text = scrubbed(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
    match error:
        case (
            aiohttp.ClientConnectorError()
            | aiohttp.ServerFingerprintMismatch()
            | aiohttp.ConnectionTimeoutError()
            | aiohttp.ClientHttpProxyError()
            | aiohttp.InvalidURL()
            | aiohttp.NonHttpUrlClientError()
        ):
            return Failure(FailureKind.UNAVAILABLE, text)
        case aiohttp.ServerTimeoutError():
            return Failure(FailureKind.TIMED_OUT, text, Billed.MAYBE)
        case aiohttp.ClientResponseError():
            return Failure(FailureKind.MALFORMED, text, Billed.MAYBE)
        case aiohttp.ClientError() | OSError():
            return Failure(FailureKind.INTERRUPTED, text, Billed.MAYBE)
        case ValueError():
            return Failure(FailureKind.UNAVAILABLE, text)
        case _:
            return Failure(FailureKind.MALFORMED, text, Billed.MAYBE)
