"""The W3C trace context of whoever submits, for the job to carry to its worker."""

from __future__ import annotations

import sys


def current() -> str | None:
    """`traceparent`, and after a line break `tracestate` if there is one; None outside of a trace.

    An application that traces has imported OpenTelemetry; in one that has not, this costs a look into a dict.
    """
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return None
    parent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    state = context.trace_state.to_header()
    return f"{parent}\n{state}" if state else parent
