"""Provider errors: one exception that carries a `Failure`, named by what the router does next."""

from __future__ import annotations

from turnout_workers.routing.failure import Failure, FailureKind
from turnout_workers.state.store import ObservedLimit


class ProviderError(Exception):
    """A call that failed. `failure` says what it means; `limits` what the provider's headers said."""

    def __init__(self, failure: Failure, limits: tuple[ObservedLimit, ...] = ()) -> None:
        super().__init__(f"{failure.kind}: {failure.message}")
        self.failure = failure
        self.limits = limits

    @classmethod
    def unsupported(cls, message: str) -> ProviderError:
        return cls(Failure(FailureKind.UNSUPPORTED, message))
