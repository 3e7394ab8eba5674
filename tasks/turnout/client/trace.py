"""The W3C trace context of whoever submits, for the job to carry to its worker."""

from __future__ import annotations

import sys


def current() -> str | None:
    """`traceparent`, and after a line break `tracestate` if there is one; None outside of a trace.

    An application that traces has imported OpenTelemetry; in one that has not, this costs a look into a dict.
    """
    if "opentelemetry.trace" not in sys.modules:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return "\n".join(carrier.values()) or None
