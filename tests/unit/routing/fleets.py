"""Small fleets for the routing tests."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from turnout.request import InferenceRequest, RoutingConstraints
from turnout_workers.routing import Endpoint
from turnout_workers.routing.decision import Decision, rank
from turnout_workers.routing.decision_log import Choice, choices
from turnout_workers.routing.fleet import EndpointView, Fleet, Health, Load, Observed, Price, ProviderMetrics, Snapshot
from turnout_workers.routing.profile import JobProfile

NOW = 1_000_000.0
WELL, UNKNOWN, IDLE = Health(), ProviderMetrics(), Load()


def endpoint(provider: str = "groq", **changes: Any) -> Endpoint:
    return replace(Endpoint(provider, "llama", "llama-3.3", price=Price(1.0, 2.0)), **changes)


def observed(ttft_s: float = 0.5, s_per_token: float = 0.01, **changes: Any) -> ProviderMetrics:
    known = ProviderMetrics(ttft_s, s_per_token, sigma=0.3, latency_at=NOW, latency_samples=50, error_weight=20.0)
    return known._replace(**changes)


def view(
    at: Endpoint,
    health: Health = WELL,
    metrics: ProviderMetrics = UNKNOWN,
    load: Load = IDLE,
) -> EndpointView:
    return EndpointView(at, health, metrics, load)


def snapshot(*parts: Endpoint | EndpointView, at: float = NOW) -> Snapshot:
    views = [p if isinstance(p, EndpointView) else EndpointView(p) for p in parts]
    observed = {v.endpoint.id: Observed(v.health, v.metrics, v.load) for v in views}
    return Fleet(v.endpoint for v in views).snapshot(at, observed)


def request(
    prompt: str = "Say hello.", model: Any = None, max_output_tokens: int | None = 100, **constraints: Any
) -> InferenceRequest:
    wanted = RoutingConstraints(**constraints)
    return InferenceRequest(prompt=prompt, model=model, max_output_tokens=max_output_tokens, constraints=wanted)


def job(**fields: Any) -> JobProfile:
    asked = request(**fields)
    return JobProfile.of(asked, deadline=asked.constraints.deadline_at(NOW))


def decide(wanted: JobProfile, *parts: Endpoint | EndpointView, seed: int = 0, **options: Any) -> Decision:
    return rank(wanted, snapshot(*parts), NOW, random.Random(seed), **options)


def chosen(decision: Decision) -> list[str]:
    return [candidate.endpoint.provider for candidate in decision.candidates]


def reasons(decision: Decision) -> dict[str, str]:
    return {e.endpoint_id.split("/")[0]: e.reason.value for e in decision.exclusions}


def changed(records: Iterable[Mapping[str, Any]]) -> list[Choice]:
    """Those recorded decisions that come out otherwise when they are made again."""
    return [choice for choice in choices(records) if choice.endpoint_id != choice.logged]
