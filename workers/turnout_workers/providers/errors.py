"""The one exception that connectors raise. Its `Failure` says what it means to the router."""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Mapping

from turnout.errors import TurnoutError
from turnout.request import InferenceResponse
from turnout_workers.routing.failure import Billed, Failure, FailureKind
from turnout_workers.state.store import ObservedLimit

logger = logging.getLogger(__name__)

MAX_ERROR = 64 * 1024
"""How many bytes of an error response, or characters of an error's text in a 200, are read. All other calls wait while
they are searched."""
_ID = re.compile(r"[!-~]{1,200}")


class ProviderError(TurnoutError):
    """A call that failed. `failure` says what it means, `limits` what the provider's headers say about its limits, and
    `response` what an unusable answer cost."""

    def __init__(
        self, failure: Failure, limits: tuple[ObservedLimit, ...] = (), response: InferenceResponse | None = None
    ) -> None:
        super().__init__(failure, limits, response)  # so that it can be pickled
        self.failure = failure
        self.limits = limits
        self.response = response

    def __str__(self) -> str:
        return f"{self.failure.kind}: {self.failure.message}"

    @classmethod
    def unsupported(cls, message: str) -> ProviderError:
        return cls(Failure(FailureKind.UNSUPPORTED, message))


def malformed(what: str, headers: Mapping[str, str] | None = None) -> ProviderError:
    """A 200 without a usable answer, assumed to have been billed."""
    failure = Failure(FailureKind.MALFORMED, what, Billed.YES, request_id=request_id(headers or {}))
    return ProviderError(failure)


def broken(
    what: str, whose: str, error: Exception, billed: Billed = Billed.NO, kind: FailureKind = FailureKind.MALFORMED
) -> Failure:
    """The failure of another package's connector or health check that raised something other than ProviderError. Its
    message may hold anything, so only the traceback is logged."""
    where = "".join(traceback.format_tb(error.__traceback__))
    logger.error("the %s of %s raised %s:\n%s", what, whose, type(error).__name__, where)
    return Failure(kind, f"its {what} raised {type(error).__name__}", billed)


def request_id(headers: Mapping[str, str]) -> str | None:
    """The provider's id of the call, for its support."""
    names = ("x-request-id", "request-id", "apim-request-id", "x-generation-id", "x-litellm-call-id", "cf-ray")
    return next((id for name in names if _ID.fullmatch(id := headers.get(name, ""))), None)
