"""Turnout: AI inference as background jobs. What a producer imports; names are loaded on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from turnout.client import AsyncClient, AsyncJob, Client, Job, Restarted
    from turnout.errors import Cancelled, Conflict, Expired, Failed, IntakeRefused, JobError, TurnoutError, Unreadable
    from turnout.request import InferenceRequest, InferenceResponse, Lane, RoutingConstraints, RoutingStrategy
    from turnout.result import JobResult

__all__ = [
    "AsyncClient", "AsyncJob", "Cancelled", "Client", "Conflict", "Expired", "Failed", "InferenceRequest",
    "InferenceResponse", "IntakeRefused", "Job", "JobError", "JobResult", "Lane", "Restarted", "RoutingConstraints",
    "RoutingStrategy", "TurnoutError", "Unreadable",
]  # fmt: skip


if not TYPE_CHECKING:  # a type checker would accept any name

    def __getattr__(name: str) -> Any:
        """The cheapest module first: all but `errors` import pydantic, and `client` imports redis."""
        if name in __all__:
            for home in ("errors", "request", "result", "client"):
                module = import_module(f"turnout.{home}")
                if hasattr(module, name):
                    return getattr(module, name)
        raise AttributeError(f"module 'turnout' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
