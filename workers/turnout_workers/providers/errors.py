"""Provider errors: one exception that carries a `Failure`, and what each of aiohttp's means."""

from __future__ import annotations

import re
from collections.abc import Mapping

import aiohttp

from turnout_workers.providers.scrub import scrubbed
from turnout_workers.routing.failure import Billed, Failure, FailureKind
from turnout_workers.state.store import ObservedLimit

_QUOTATION = re.compile(r"\n|\\n|<Raw")
"""Where aiohttp begins to repeat what came: an answer, or a prompt or key that somebody echoes."""


class ProviderError(Exception):
    """A call that failed. `failure` says what it means; `limits` what the provider's headers said."""

    def __init__(self, failure: Failure, limits: tuple[ObservedLimit, ...] = ()) -> None:
        super().__init__(f"{failure.kind}: {failure.message}")
        self.failure = failure
        self.limits = limits

    @classmethod
    def unsupported(cls, message: str) -> ProviderError:
        return cls(Failure(FailureKind.UNSUPPORTED, message))


def malformed(what: str, headers: Mapping[str, str] | None = None) -> ProviderError:
    """A 200 that is no answer, assumed to have been billed."""
    failure = Failure(FailureKind.MALFORMED, what, Billed.YES, status=200, request_id=request_id(headers or {}))
    return ProviderError(failure)


def request_id(headers: Mapping[str, str]) -> str | None:
    """The provider's own name of the call, for its support."""
    names = ("x-request-id", "request-id", "apim-request-id", "x-generation-id", "cf-ray")
    return next((headers[name] for name in names if headers.get(name)), None)


def classify_exception(error: BaseException) -> Failure:
    """Of a call that is not known to have been answered."""
    said = _QUOTATION.split(str(error))[0].rstrip(" :'\"")
    text = scrubbed(f"{type(error).__name__}: {said}" if said else type(error).__name__)
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
