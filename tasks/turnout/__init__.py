"""Turnout: AI inference as background jobs. What a producer imports; names are loaded when they are first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from turnout.client import AsyncClient, AsyncJob, Client, Job, Restarted
    from turnout.errors import (
        Cancelled,
        Conflict,
        Expired,
        Failed,
        IntakeRefused,
        JobError,
        Refused,
        TurnoutError,
        Unreadable,
    )
    from turnout.request import InferenceRequest, InferenceResponse, Lane, RoutingConstraints, RoutingStrategy
    from turnout.result import JobResult

__all__ = [
    "AsyncClient",
    "AsyncJob",
    "Cancelled",
    "Client",
    "Conflict",
    "Expired",
    "Failed",
    "InferenceRequest",
    "InferenceResponse",
    "IntakeRefused",
    "Job",
    "JobError",
    "JobResult",
    "Lane",
    "Refused",
    "Restarted",
    "RoutingConstraints",
    "RoutingStrategy",
    "TurnoutError",
    "Unreadable",
]

_CLIENTS = {"Client", "Job", "AsyncClient", "AsyncJob", "Restarted"}


def __getattr__(name: str) -> Any:
    """Clients bring redis along, and all but the errors pydantic."""
    if name in __all__:
        for home in ("client",) if name in _CLIENTS else ("errors", "request", "result"):
            module = import_module(f"turnout.{home}")
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module 'turnout' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
