"""OpenTelemetry spans of a worker: a job's wait in the queue, its hold here, each decision, call and settlement.

Optional: without the `otel` extra or a tracer provider, nothing is imported and no span is made. Names follow
OpenTelemetry's conventions for generative AI. No attribute contains a prompt, an answer, a key or the text of an
exception.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer, TracerProvider

    from turnout_workers.attempts.job import HeldJob
    from turnout_workers.attempts.reporting import Finished
    from turnout_workers.routing.decision import Candidate

logger = logging.getLogger(__name__)

REQUESTED_BY = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_TRACES_EXPORTER")
"""Any of these standard variables turns spans on."""
WELL_KNOWN = {"gemini": "gcp.gemini", "azure": "azure.ai.openai", "mistral": "mistral_ai", "xai": "x_ai"}
"""`gen_ai.provider.name` of providers whose name in turnout.toml differs from it."""

NONE = nullcontext()
"""Replaces a span."""
_tracer: Tracer | None = None


def configure(environ: Mapping[str, str]) -> None:
    """Export spans by OTLP over HTTP if the standard `OTEL_…` variables ask for it."""
    exporter = environ.get("OTEL_TRACES_EXPORTER") or "otlp"
    if exporter == "none" or not any(environ.get(name) for name in REQUESTED_BY):
        return
    if exporter != "otlp":
        logger.error("no spans are exported: OTEL_TRACES_EXPORTER is %r, must be otlp or none", exporter)
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        logger.warning("OTEL_… variables ask for spans, but OpenTelemetry is missing: pip install 'turnout[otel]'")
        return
    name = environ.get("OTEL_SERVICE_NAME") or "turnout-worker"
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    use(provider)


def use(provider: TracerProvider | None) -> None:
    """Make spans with this provider; None: make none."""
    global _tracer
    _tracer = provider.get_tracer("turnout") if provider else None


def span(name: str, **attributes: Any) -> AbstractContextManager[Span | None]:
    """A span around a part of a job's work; yields None if spans are off."""
    return NONE if _tracer is None else _span(_tracer, name, attributes)


@contextmanager
def _span(tracer: Tracer, name: str, attributes: Mapping[str, Any], within: Context | None = None) -> Iterator[Span]:
    from opentelemetry.trace import SpanKind

    kind = SpanKind.CLIENT if "gen_ai.provider.name" in attributes else SpanKind.INTERNAL
    with tracer.start_as_current_span(
        name, within, kind, attributes, record_exception=False, set_status_on_exception=False
    ) as begun:
        try:
            yield begun
        except asyncio.CancelledError:
            _failed(begun, "cancelled")
            raise
        except Exception as error:
            _failed(begun, type(error).__name__)
            raise


def holding(job: HeldJob) -> AbstractContextManager[Span | None]:
    """One worker's hold of a job, in the trace of its submitter, and the wait in the queue before it."""
    if _tracer is None:
        return NONE
    within, now = _context(job.claim.trace), time.time_ns()
    about = {"turnout.job.id": job.id, "turnout.lane": job.claim.lane.value}
    began = now - round(max(0.0, job.claim.queued_for_s) * 1e9)
    _tracer.start_span("turnout.queue", within, attributes=about, start_time=began).end(now)
    return _span(_tracer, "turnout.job", about, within)


def called(job: HeldJob, chosen: Candidate, call: Awaitable[Finished]) -> Awaitable[Finished]:
    """A call to a provider, inside its span."""
    return call if _tracer is None else _called(_tracer, job, chosen, call)


async def _called(tracer: Tracer, job: HeldJob, chosen: Candidate, call: Awaitable[Finished]) -> Finished:
    endpoint, operation = chosen.endpoint, "chat" if job.request.input is None else "embeddings"
    about = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": WELL_KNOWN.get(endpoint.provider, endpoint.provider),
        "gen_ai.request.model": endpoint.served_model,
        "turnout.endpoint": endpoint.id,
    }
    with _span(tracer, f"{operation} {endpoint.served_model}", about) as begun:
        finished = await call
        if (response := finished.response) is not None:
            begun.set_attribute("gen_ai.response.model", response.model_served)
            begun.set_attribute("gen_ai.usage.input_tokens", response.usage.input_tokens)
            begun.set_attribute("gen_ai.usage.output_tokens", response.usage.output_tokens)
        if finished.failure is not None:
            _failed(begun, finished.failure.kind.value)
        return finished


def trace_id() -> str:
    """The current trace's id, 32 hexadecimal digits; empty outside of a trace."""
    if _tracer is None:
        return ""
    from opentelemetry.trace import get_current_span

    context = get_current_span().get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else ""


def headers() -> dict[str, str]:
    """Headers with the current span's context, for a server that continues the trace."""
    carrier: dict[str, str] = {}
    if _tracer is not None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        TraceContextTextMapPropagator().inject(carrier)
    return carrier


def _context(trace: str | None) -> Context:
    """The trace context that a job carries. If there is none, or a wrong one, a new trace begins."""
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    parent, _, state = (trace or "").partition("\n")
    return TraceContextTextMapPropagator().extract({"traceparent": parent, "tracestate": state}, Context())


def _failed(span: Span, kind: str) -> None:
    from opentelemetry.trace import StatusCode

    span.set_attribute("error.type", kind)
    span.set_status(StatusCode.ERROR)
