"""What went wrong below HTTP: every exception of httpx and aiohttp, by what it means."""

from __future__ import annotations

import aiohttp
import httpx
from pydantic_core import PydanticSerializationError

from turnout_workers.providers.classify import scrubbed
from turnout_workers.routing.failure import Billed, Failure, FailureKind


def classify_exception(error: BaseException) -> Failure:
    """httpx's exceptions, and those of aiohttp that come through unmapped."""
    cause = error.__cause__ or error
    text = scrubbed(f"{type(cause).__name__}: {cause}" if str(cause) else type(cause).__name__)
    match error:
        case httpx.PoolTimeout():
            return Failure(FailureKind.LOCAL, text)
        case httpx.ConnectError() | httpx.ProxyError() | httpx.UnsupportedProtocol() | httpx.InvalidURL():
            return Failure(FailureKind.UNAVAILABLE, text)
        case (
            aiohttp.ClientConnectorError()
            | aiohttp.ServerFingerprintMismatch()
            | aiohttp.ConnectionTimeoutError()
            | aiohttp.ClientHttpProxyError()
            | aiohttp.InvalidURL()
            | aiohttp.NonHttpUrlClientError()
        ):
            return Failure(FailureKind.UNAVAILABLE, text)
        case httpx.ConnectTimeout():
            # The transport gives this name to lost connections too; those may have been billed.
            reset = isinstance(cause, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError)
            if reset and not isinstance(cause, aiohttp.ClientConnectorError):
                return Failure(FailureKind.INTERRUPTED, text, Billed.MAYBE)
            return Failure(FailureKind.UNAVAILABLE, text)
        case httpx.ReadTimeout() | httpx.WriteTimeout() | aiohttp.ServerTimeoutError():
            return Failure(FailureKind.TIMED_OUT, text, Billed.MAYBE)
        case httpx.TimeoutException():
            # aiohttp's ServerTimeoutError: connecting took too long
            return Failure(FailureKind.UNAVAILABLE, text)
        case aiohttp.ClientResponseError() | httpx.DecodingError() | httpx.TooManyRedirects():
            return Failure(FailureKind.MALFORMED, text, Billed.MAYBE)
        case httpx.TransportError() | aiohttp.ClientError() | OSError() | httpx.StreamError():
            return Failure(FailureKind.INTERRUPTED, text, Billed.MAYBE)
        case PydanticSerializationError():
            return Failure(FailureKind.INVALID_REQUEST, "the request holds text that is no Unicode")
        case ValueError():
            return Failure(FailureKind.UNAVAILABLE, text)
        case _:
            return Failure(FailureKind.MALFORMED, text, Billed.MAYBE)
