"""Spans hold what operators look for and nothing of what was asked; without a provider of tracers there are none."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import aclosing
from types import SimpleNamespace as Told
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from turnout.client.submission import new_job
from turnout.request import InferenceRequest, InferenceResponse, Lane, Usage
from turnout_workers.monitoring import tracing
from turnout_workers.providers import Http, ProviderConfig, build
from turnout_workers.providers.connector import Connector
from turnout_workers.routing.failure import Failure, FailureKind
from turnout_workers.routing.fleet import Endpoint

PARENT = f"00-{'ab' * 16}-{'cd' * 8}-01"


@pytest.fixture
def provider() -> Iterator[TracerProvider]:
    provider = TracerProvider()
    tracing.use(provider)
    yield provider
    tracing.use(None)


@pytest.fixture
def spans(provider: TracerProvider) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return exporter


def held(carried: str | None = PARENT) -> Any:
    claim = Told(trace=carried, lane=Lane.STANDARD, queued_for_s=2.0)
    return Told(id="job-1", claim=claim, request=InferenceRequest(prompt="a secret"))


async def ended(response: InferenceResponse | None, failure: Failure | None = None) -> Any:
    return Told(response=response, failure=failure)


CHOSEN: Any = Told(endpoint=Endpoint("gemini", "llama", "llama-wire"))
ANSWER = InferenceResponse(
    text="a secret", provider="gemini", model_requested="llama", model_served="llama-v2",
    usage=Usage(input_tokens=7, output_tokens=5),
)  # fmt: skip


async def test_a_call_follows_the_conventions_and_has_no_content(spans: InMemorySpanExporter) -> None:
    await tracing.called(held(), CHOSEN, ended(ANSWER))
    (span,) = spans.get_finished_spans()
    assert span.kind is SpanKind.CLIENT
    assert span.name == f"chat {CHOSEN.endpoint.served_model}"
    assert dict(span.attributes or {}) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "gcp.gemini",
        "gen_ai.request.model": CHOSEN.endpoint.served_model,
        "gen_ai.response.model": "llama-v2",
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 5,
        "turnout.endpoint": CHOSEN.endpoint.id,
    }
    assert "secret" not in span.to_json()


async def test_failures_cancellations_and_faults_name_their_kind_and_no_text(spans: InMemorySpanExporter) -> None:
    async def broken() -> Any:
        raise ValueError("a secret")

    await tracing.called(held(), CHOSEN, ended(None, Failure(FailureKind.TIMED_OUT, "a secret")))
    with pytest.raises(ValueError, match="a secret"):
        await tracing.called(held(), CHOSEN, broken())
    waiting = asyncio.ensure_future(tracing.called(held(), CHOSEN, asyncio.Event().wait()))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    told = spans.get_finished_spans()
    assert [(span.attributes or {})["error.type"] for span in told] == ["timed_out", "ValueError", "cancelled"]
    assert {span.status.status_code for span in told} == {StatusCode.ERROR}
    assert not any("secret" in span.to_json() for span in told)


def test_a_hold_goes_on_with_the_submitters_trace_and_tells_the_wait_before_it(spans: InMemorySpanExporter) -> None:
    with tracing.holding(held(f"{PARENT}\nvendor=1")):
        assert tracing.trace_id() == "ab" * 16
        assert tracing.headers()["tracestate"] == "vendor=1"
    queue, hold = spans.get_finished_spans()
    assert (queue.name, hold.name) == ("turnout.queue", "turnout.job")
    assert {f"{span.parent.span_id:016x}" for span in (queue, hold) if span.parent} == {"cd" * 8}
    assert (queue.end_time or 0) - (queue.start_time or 0) == 2_000_000_000
    assert tracing.trace_id() == ""


@pytest.mark.parametrize("carried", [None, "", "00-nonsense", "\n"])
def test_what_is_no_trace_context_begins_a_new_trace(carried: str | None, spans: InMemorySpanExporter) -> None:
    with tracing.holding(held(carried)):
        assert tracing.trace_id() not in ("", "ab" * 16)
    assert all(span.parent is None for span in spans.get_finished_spans())


def test_a_job_carries_the_trace_of_its_submission(provider: TracerProvider) -> None:
    assert new_job("?").trace is None
    with provider.get_tracer("web").start_as_current_span("POST /summaries") as request:
        carried = new_job("?").trace
    context = request.get_span_context()
    assert carried == f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


async def test_without_a_provider_of_tracers_nothing_is_made() -> None:
    with tracing.holding(held()) as hold, tracing.span("turnout.decide") as decide:
        assert (await tracing.called(held(), CHOSEN, ended(ANSWER))).response is ANSWER
    assert (hold, decide, tracing.trace_id(), tracing.headers()) == (None, None, "", {})


def test_without_the_extra_all_goes_and_a_worker_that_is_asked_for_spans_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from turnout.client.submission import new_job; import turnout_workers.attempts.attempt\n"
        "from turnout_workers.monitoring import tracing\n"
        "tracing.configure({}); tracing.configure({'OTEL_EXPORTER_OTLP_ENDPOINT': 'http://127.0.0.1:9'})\n"
        "sys.exit(new_job('?').trace is not None or tracing.headers() != {})"
    )
    told = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert told.returncode == 0
    assert "pip install 'turnout[otel]'" in told.stderr
    assert len(told.stderr.splitlines()) == 1


@pytest.mark.parametrize("exporter", ["console", "console,otlp"])
def test_an_exporter_that_is_not_known_is_refused(
    exporter: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracing, "use", lambda _: pytest.fail("spans are exported all the same"))
    tracing.configure({"OTEL_TRACES_EXPORTER": exporter, "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"})
    assert f"OTEL_TRACES_EXPORTER is '{exporter}'" in caplog.text


@pytest.mark.parametrize("wanted", [True, False])
async def test_only_a_provider_whose_table_says_so_is_sent_the_trace_context(
    wanted: bool, provider: TracerProvider
) -> None:
    async with aclosing(Http()) as http:
        config = ProviderConfig("x", "openai", "http://127.0.0.1:9", (CHOSEN.endpoint,), traceparent=wanted)
        connector = build(config, http)
        assert isinstance(connector, Connector)
        with tracing.holding(held()):
            headers = connector.headers(CHOSEN.endpoint)
    assert ("ab" * 16 in headers.get("traceparent", "")) is wanted
