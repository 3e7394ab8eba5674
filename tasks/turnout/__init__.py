"""Turnout: AI inference as background jobs. What a producer imports; names are loaded when they are first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from turnout.client.blocking import Client, Job
    from turnout.client.nonblocking import AsyncClient, AsyncJob
    from turnout.client.streaming import Restarted
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
    from turnout.request import (
        InferenceRequest,
        InferenceResponse,
        Lane,
        RoutingConstraints,
        RoutingStrategy,
    )
    from turnout.result import JobResult

_HOMES = {
    "turnout.client.blocking": ("Client", "Job"),
    "turnout.client.nonblocking": ("AsyncClient", "AsyncJob"),
    "turnout.client.streaming": ("Restarted",),
    "turnout.errors": (
        "Cancelled",
        "Conflict",
        "Expired",
        "Failed",
        "IntakeRefused",
        "JobError",
        "Refused",
        "TurnoutError",
        "Unreadable",
    ),
    "turnout.request": ("InferenceRequest", "InferenceResponse", "Lane", "RoutingConstraints", "RoutingStrategy"),
    "turnout.result": ("JobResult",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

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


def __getattr__(name: str) -> Any:
    if (home := _HOME.get(name)) is None:
        raise AttributeError(f"module 'turnout' has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return __all__
